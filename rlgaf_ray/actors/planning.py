"""Compute a placement from a config and the nodes of a cluster, or an error message that says why none fits.

Nothing here needs a running Ray: ``rlgaf plan`` uses it for clusters that do not exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rlgaf_ray.actors.layout import Kind, Placement, Resource
from rlgaf_ray.actors.packing import Bundle, Node, pack, spots
from rlgaf_ray.config.schema import Config
from rlgaf_ray.errors import UserError

NUM_CPU_ROLLOUT_WORKERS = 2  # default; more workers have not been benchmarked
NUM_ROLES = 3


@dataclass(frozen=True, slots=True)
class Request:
    """The actors and resources that a config requests."""

    kind: Kind
    num_workers: int
    num_learners: int
    num_discriminators: int
    tensor_parallel_size: int
    gpus: float  # per actor
    cpus: float | None  # per actor; None: an equal share
    threads: int | None
    overlap: bool = False  # sampling overlaps the updates: each side gets half of a node's cores

    @property
    def num_actors(self) -> int:
        return self.num_workers + self.num_learners + self.num_discriminators


KEYS = {
    "kind": "cluster.placement",
    "num_workers": "rollout.num_workers",
    "num_learners": "learner.num_workers",
    "num_discriminators": "discriminator.num_workers",
    "tensor_parallel_size": "rollout.tensor_parallel_size",
    "gpus": "cluster.gpus_per_actor",
    "cpus": "cluster.cpus_per_actor",
}


def smallest_node(nodes: Sequence[Node]) -> int:
    """Return the cores of the smallest node that has any."""
    return min((int(node.cpus) for node in nodes if node.cpus >= 1), default=1)


def totals(nodes: Sequence[Node]) -> tuple[float, float, int]:
    """Return the CPUs and GPUs of all nodes, and the cores of the smallest node."""
    return sum(node.cpus for node in nodes), sum(node.gpus for node in nodes), smallest_node(nodes)


def request_from(config: Config, *, node_cpus: int) -> Request:
    """Read the request from a config. Raises ``UserError`` for settings that no cluster can satisfy."""
    cluster, shards = config.cluster, config.rollout.tensor_parallel_size
    if shards > 1 and (cluster.gpus_per_actor < 1 or cluster.placement == "colocate"):
        raise UserError(
            f"rollout.tensor_parallel_size={shards} needs whole GPUs (Ray gives an actor a fraction of one GPU or "
            "several whole ones): set cluster.gpus_per_actor=1 and a cluster.placement other than colocate"
        )
    if 0 < cluster.gpus_per_actor < 1 and cluster.placement in ("separate", "spread"):
        raise UserError(
            f"cluster.placement={cluster.placement} gives each actor its own GPUs: set cluster.gpus_per_actor=1, or "
            "cluster.placement=colocate"
        )
    overlap = config.schedule.mode != "sync" and cluster.gpus_per_actor == 0
    num_workers = config.rollout.num_workers
    if num_workers is None:
        rollout_cpus = max(1, node_cpus // 2) if overlap else node_cpus
        num_workers = min(NUM_CPU_ROLLOUT_WORKERS, rollout_cpus) if cluster.gpus_per_actor == 0 else 1
    return Request(
        kind=cluster.placement,
        num_workers=num_workers,
        num_learners=config.learner.num_workers,
        num_discriminators=config.discriminator.num_workers,
        tensor_parallel_size=shards,
        gpus=cluster.gpus_per_actor,
        cpus=cluster.cpus_per_actor,
        threads=cluster.threads,
        overlap=overlap,
    )


def build_placement(request: Request, nodes: Sequence[Node], *, node_cpus: int) -> Placement:
    """Build the requested placement, without checking that it fits on the nodes (see ``misfit``)."""
    cluster_cpus, gpus = sum(node.cpus for node in nodes), request.gpus
    own_cores = request.kind == "separate" and gpus == 0
    if request.kind == "colocate" and gpus > 0:
        gpus = _rounded_down(1 / NUM_ROLES)
    elif request.kind == "colocate":
        cluster_cpus = max((node.cpus for node in nodes), default=0.0)
    if own_cores:
        equal_share = float(_whole_cores(request.num_actors, nodes))
    else:
        equal_share = _rounded_down(min(1.0, cluster_cpus / request.num_actors)) or 1.0  # 1.0: no node has joined yet
    cpus = request.cpus or equal_share
    sampling = max(1, node_cpus // 2) if request.overlap and request.kind in ("auto", "colocate") else node_cpus
    learning = max(1, node_cpus - sampling) if sampling < node_cpus else node_cpus

    def threads_of(count: int, cores: int) -> int:
        """Return the threads per actor for ``count`` actors that compute concurrently on their node's ``cores``."""
        if own_cores:
            return request.threads or max(1, int(cpus))
        on_one_node = math.ceil(count / len(nodes)) if request.kind == "spread" and nodes else count
        return max(1, (request.threads or cores) // on_one_node)

    return Placement(
        num_rollout_workers=request.num_workers,
        cpus_per_actor=cpus,
        gpus_per_actor=gpus,
        threads=threads_of(max(request.num_learners, request.num_discriminators), learning),
        rollout_threads=threads_of(request.num_workers, sampling),
        kind=request.kind,
        num_learners=request.num_learners,
        num_discriminators=request.num_discriminators,
        tensor_parallel_size=request.tensor_parallel_size,
    )


def _rounded_down(share: float) -> float:
    """Round down to 0.001 (Ray's resolution is 0.0001), so that the shares never add up to more than the total."""
    return math.floor(share * 1000) / 1000


def _whole_cores(num_actors: int, nodes: Sequence[Node]) -> int:
    """Return the largest number of dedicated cores per actor that fits on the nodes; at least 1."""
    most = max((int(node.cpus) for node in nodes), default=1)
    fitting = (cores for cores in range(most, 1, -1) if sum(node.cpus // cores for node in nodes) >= num_actors)
    return next(fitting, 1)


def misfit(placement: Placement, nodes: Sequence[Node]) -> str | None:
    """Say why the placement cannot run on the nodes; None if it can."""
    return shortage(placement, nodes) or ranks_on_one_gpu(placement, nodes)


def ranks_on_one_gpu(placement: Placement, nodes: Sequence[Node]) -> str | None:
    """Say which two ranks of a group would share a GPU, which NCCL refuses; None if none would.

    More nodes do not help: Ray fills a GPU before it takes the next.
    """
    placed = spots(placement.bundles, placement.strategy, nodes)
    assert placed is not None, "shortage rejects placements that do not fit"
    for group, bundles in (
        ("learner", placement.learner_bundles),
        ("discriminator", placement.discriminator_bundles),
    ):
        taken: dict[tuple[int, int], int] = {}  # the rank on each GPU of each node
        for rank, bundle in enumerate(bundles):
            for gpu in placed[bundle].gpus:
                other = taken.setdefault((placed[bundle].node, gpu), rank)
                if other != rank:
                    return (
                        f"ranks {other} and {rank} of the {group} would share a GPU, and NCCL needs one for each: "
                        f"raise cluster.gpus_per_actor={placement.gpus_per_actor:g}, or lower {group}.num_workers"
                    )
    return None


def shortage(placement: Placement, nodes: Sequence[Node]) -> str | None:
    """Say which resources are missing: the totals requested and available, or the bundle that fits on no node.

    Returns None if none are.
    """
    available: dict[Resource, float] = {
        "CPU": sum(node.cpus for node in nodes),
        "GPU": sum(node.gpus for node in nodes),
    }
    shares: dict[Resource, float] = {"CPU": placement.cpus_per_actor, "GPU": placement.gpus_per_actor}
    for name, each in shares.items():
        asked = placement.total(name)
        if asked > available[name] + 1e-9:
            return (
                f"the run asks for {asked:g} {name}s ({_product(placement, name, each)}) and the cluster has "
                f"{available[name]:g}: lower cluster.{name.lower()}s_per_actor or rollout.num_workers, or add nodes"
            )
    if pack(placement.bundles, placement.strategy, nodes) is not None:
        return None
    largest = max(placement.bundles, key=lambda bundle: (bundle.get("GPU", 0.0), bundle["CPU"]))
    node = max(nodes, key=lambda node: (node.gpus, node.cpus), default=Node(0.0))
    total = {name: placement.total(name) for name in available}
    where = "on one node" if placement.strategy == "STRICT_PACK" else "on its nodes"
    return (
        f"the run asks for {_words(total)} in {len(placement.bundles)} bundles of at most {_words(largest)}, which do "
        f"not fit {where}: the cluster has {_words(available)}, at most "
        f"{_words({'CPU': node.cpus, 'GPU': node.gpus})} per node"
    )


def _product(placement: Placement, name: Resource, each: float) -> str:
    if name == "GPU" and placement.shares_gpus:
        return f"{len(placement.bundles)}, shared by an actor of each role"
    if name == "GPU" and placement.tensor_parallel_size > 1:
        singles = placement.num_learners + placement.num_discriminators
        return (
            f"{singles} ranks x {each:g} + {placement.num_rollout_workers} rollout workers x "
            f"{placement.gpus_per_rollout_worker:g}"
        )
    return f"{placement.num_actors} actors x {each:g}"


def _words(amounts: Mapping[Resource, float] | Bundle) -> str:
    return " and ".join(f"{amount:g} {name}s" for name, amount in amounts.items())


def nearest(request: Request, nodes: Sequence[Node], node_cpus: int) -> str:
    """Name the smallest config changes that make a request fit.

    It first lowers the number of actors, then their shares and shards, and changes the placement last.
    """

    def fits(lesser: Request) -> bool:
        return misfit(build_placement(lesser, nodes, node_cpus=node_cpus), nodes) is None

    for variant in _variants(request):
        lesser = _most_actors(variant, fits)
        if lesser is not None:
            pairs = {key: (getattr(request, name), getattr(lesser, name)) for name, key in KEYS.items()}
            changes = (f"{key}={_yaml(new)}" for key, (old, new) in pairs.items() if new != old)
            return "the nearest plan that fits: " + " ".join(changes)
    return "no smaller plan fits either"


def _yaml(value: object) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _variants(request: Request) -> Iterator[Request]:
    """Yield the request with smaller shares per actor, closest first."""
    placements = [request]
    if request.kind != "colocate" and request.gpus > 0:
        placements.append(replace(request, kind="colocate", tensor_parallel_size=1))
    elif request.kind != "auto" and request.gpus == 0:
        placements.append(replace(request, kind="auto"))
    for placed in placements:
        for sized in _halved_shards(placed):
            for cpus in dict.fromkeys((request.cpus, None)):
                for gpus in _shares(sized):
                    yield replace(sized, cpus=cpus, gpus=gpus)


def _halved_shards(request: Request) -> Iterator[Request]:
    shards = request.tensor_parallel_size
    while shards > 1:
        yield replace(request, tensor_parallel_size=shards)
        shards //= 2
    yield replace(request, tensor_parallel_size=1)


def _shares(request: Request) -> list[float]:
    """Return the GPU shares to try: the requested one, then smaller ones if each actor has its own bundle."""
    if request.kind != "auto" or request.tensor_parallel_size > 1:
        return [request.gpus]
    return [request.gpus, *(share for share in (0.5, 0.333, 0.25) if share < request.gpus)]


def _most_actors(request: Request, fits: Callable[[Request], bool]) -> Request | None:
    """Return the request with the most actors that fits: fewer rollout workers, the ranks of both groups halved."""
    ranks = [(request.num_learners, request.num_discriminators)]
    while max(ranks[-1]) > 1:
        ranks.append((max(1, ranks[-1][0] // 2), max(1, ranks[-1][1] // 2)))
    found: list[Request] = []
    for learners, discriminators in ranks:
        sized = replace(request, num_learners=learners, num_discriminators=discriminators)
        few, many = 0, request.num_workers
        while few < many:  # bisection: fitting is monotone in the number of workers
            workers = (few + many + 1) // 2
            few, many = (workers, many) if fits(replace(sized, num_workers=workers)) else (few, workers - 1)
        if few > 0:
            found.append(replace(sized, num_workers=few))
    return max(found, key=lambda each: each.num_actors, default=None)
