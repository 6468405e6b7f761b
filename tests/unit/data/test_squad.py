from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rlgaf_ray.config.task import SquadSettings, TaskSection
from rlgaf_ray.data.pairs import PARTS
from rlgaf_ray.data.squad import Question, load_squad, squad_pairs, squad_source
from rlgaf_ray.errors import UserError


def squad(*titles: str, per_article: int = 4) -> dict:
    def row(title: str, index: int) -> dict:
        return {"question": f" What  is {title} {index}? ", "answers": [{"text": title, "answer_start": 4}]}

    return {
        "version": "1.1",
        "data": [
            {
                "title": title,
                "paragraphs": [{"context": f"The {title}", "qas": [row(title, i) for i in range(per_article)]}],
            }
            for title in titles
        ],
    }


def test_plain_and_compressed_files(tmp_path: Path) -> None:
    content = squad("A", "B")
    content["data"][1]["paragraphs"][0]["qas"][0] |= {"is_impossible": True, "answers": []}
    plain, packed = tmp_path / "a.json", tmp_path / "a.json.gz"
    plain.write_text(json.dumps(content))
    with gzip.open(packed, "wt") as file:
        json.dump(content, file)
    questions = load_squad(plain)
    assert questions == load_squad(packed)
    assert questions[0] == Question("A", "The A", "What is A 0?", ["A"], 4)
    assert questions[4] == Question("B", "The B", "What is B 0?", [], None)
    assert len(questions) == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid UTF-8 JSON"),
        ('{"data": [{"title": "A"}]}', "is not in SQuAD's format .*'paragraphs' is missing"),
        ("[1]", "is not in SQuAD's format"),
        ('{"data": []}', "has no questions"),
    ],
)
def test_other_files_raise(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_squad(path)


def test_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.json does not exist: give an official SQuAD file"):
        load_squad(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"~no-such-user/a.json does not exist: give an official SQuAD file"):
        load_squad("~no-such-user/a.json")


def test_parts_share_no_article(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(squad(*(f"T{index}" for index in range(50)))))
    task = TaskSection(name="squad", squad=SquadSettings(source="path", path=str(path)))
    source = squad_source(task, base=True)
    assert {name: len(part) for name, part in source.parts.items()} == dict(zip(PARTS, (92, 68, 20, 20), strict=True))
    groups = [{pair.group for pair in part} for part in source.parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 50
    assert squad_source(task, base=True).parts == source.parts


def test_dropped_questions_are_counted(tmp_path: Path) -> None:
    content = squad(*(f"T{index}" for index in range(50)))
    for article in content["data"][:7]:
        article["paragraphs"][0]["qas"][0] |= {"is_impossible": True, "answers": []}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    for choice, remarks in (("keep", 0), ("drop", 7)):
        settings = SquadSettings.model_validate({"source": "path", "path": str(path), "unanswerable": choice})
        source = squad_source(TaskSection(name="squad", squad=settings), base=True)
        assert source.remarks == {"questions left out by task.squad.unanswerable=drop": remarks}


def test_rows_are_kept_for_reward_functions() -> None:
    question = Question("T", "Paris is in France.", "Where is Paris?", ["France"], 12)
    (kept,), (bare,) = (squad_pairs([question], SquadSettings(), keep_rows=keep) for keep in (True, False))
    assert kept.row == {
        "title": "T",
        "context": "Paris is in France.",
        "question": "Where is Paris?",
        "answers": ["France"],
    }
    assert bare.row == {} and f"{bare}" == f"{kept}"  # the checksum hashes the repr


def test_prompts_with_and_without_context() -> None:
    question = Question("T", "Paris is in France.", "Where is Paris?", ["France", "in France"], 12)
    (pair,) = squad_pairs([question], SquadSettings())
    assert pair.before + pair.context + pair.after == "Context: Paris is in France.\nQuestion: Where is Paris?\nAnswer:"
    assert (pair.response, pair.references, pair.group) == (" France", ("France", "in France"), "T")
    assert pair.kept_span is not None
    assert pair.context[slice(*pair.kept_span)] == "France"
    (bare,) = squad_pairs([question], SquadSettings(context=False))
    assert bare.before + bare.context + bare.after == "Question: Where is Paris?\nAnswer:"
    assert bare.kept_span is None


def test_unanswerable_questions_are_kept_or_dropped() -> None:
    questions = [Question("T", "Paris.", "Who?"), Question("T", "Paris.", "Where?", ["Paris"], 0)]
    (unanswerable, _) = squad_pairs(questions, SquadSettings(no_answer="no answer"))
    assert (unanswerable.response, unanswerable.references) == (" no answer", ())
    assert [pair.response for pair in squad_pairs(questions, SquadSettings(unanswerable="drop"))] == [" Paris"]
