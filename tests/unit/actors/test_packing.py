from __future__ import annotations

from rlgaf_ray.actors.packing import Node, Spot, pack, spots

THREE = [Node(4), Node(4), Node(4)]


def test_pack_fills_one_node_before_the_next() -> None:
    assert pack([{"CPU": 2.0}] * 5, "PACK", THREE) == [0, 0, 1, 1, 2]


def test_strict_pack_takes_the_first_node_that_holds_all() -> None:
    assert pack([{"CPU": 2.0}] * 3, "STRICT_PACK", [Node(4), Node(6)]) == [1, 1, 1]
    assert pack([{"CPU": 2.0}] * 4, "STRICT_PACK", [Node(4), Node(6)]) is None


def test_spread_alternates_between_nodes() -> None:
    assert pack([{"CPU": 1.0}] * 5, "SPREAD", THREE) == [0, 1, 2, 0, 1]
    assert pack([{"CPU": 3.0}] * 4, "SPREAD", THREE) is None


def test_a_fractional_bundle_fits_on_one_gpu() -> None:
    bundles = [{"CPU": 1.0, "GPU": 0.6}] * 3  # 1.8 GPUs in total, but a GPU holds one bundle only
    assert pack(bundles, "PACK", [Node(8, 2)]) is None
    assert pack(bundles, "PACK", [Node(8, 3)]) == [0, 0, 0]
    assert pack([{"CPU": 1.0, "GPU": 0.333}] * 3, "PACK", [Node(8, 1)]) == [0, 0, 0]


def test_the_largest_bundle_is_placed_first() -> None:
    bundles = [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 4.0}]
    assert pack(bundles, "PACK", [Node(8, 4), Node(8, 1)]) == [1, 0]


def test_whole_gpus_stay_on_one_node() -> None:
    assert pack([{"CPU": 1.0, "GPU": 4.0}], "PACK", [Node(8, 2), Node(8, 2)]) is None


def test_fractions_fill_one_gpu_before_the_next() -> None:
    halves = [{"CPU": 1.0, "GPU": 0.5}] * 3
    assert spots(halves, "PACK", [Node(8, 2)]) == [Spot(0, (0,)), Spot(0, (0,)), Spot(0, (1,))]
    shards = [{"CPU": 1.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 1.0}]
    assert spots(shards, "PACK", [Node(8, 3)]) == [Spot(0, (0, 1)), Spot(0, (2,))]
    assert spots([{"CPU": 1.0}], "STRICT_PACK", [Node(1)]) == [Spot(0)]
