from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from rlgaf_ray.data.squad import Question, context_window, load_squad, prompt_text, split_by_article


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


def test_reads_plain_and_compressed_files(tmp_path: Path) -> None:
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
        ("{", "is no JSON in UTF-8"),
        ('{"data": [{"title": "A"}]}', "is not in SQuAD's form .*'paragraphs' is missing"),
        ("[1]", "is not in SQuAD's form"),
        ('{"data": []}', "holds no question"),
    ],
)
def test_refuses_other_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_squad(path)


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.json does not exist: give an official SQuAD file"):
        load_squad(tmp_path / "none.json")


def test_parts_share_no_article(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(squad(*(f"T{index}" for index in range(50)))))
    questions = load_squad(path)
    parts = split_by_article(questions, {"train": 0.6, "judge": 0.2, "held_out": 0.2}, seed=3)
    titles = [{question.title for question in part} for part in parts.values()]
    assert [len(part) for part in parts.values()] == [120, 40, 40]
    assert sum(len(part) for part in titles) == len(set.union(*titles)) == 50
    assert parts == split_by_article(questions, {"train": 0.6, "judge": 0.2, "held_out": 0.2}, seed=3)
    assert parts != split_by_article(questions, {"train": 0.6, "judge": 0.2, "held_out": 0.2}, seed=4)
    with pytest.raises(ValueError, match="1 articles are too few for the parts train, held_out: none is left for held"):
        split_by_article(questions[:4], {"train": 0.5, "held_out": 0.5}, seed=0)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """One token a word."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("w5", "w3 w4 w5 w6 w7"),
        ("w0", "w0 w1 w2 w3 w4"),
        ("w9", "w5 w6 w7 w8 w9"),
        ("w4 w5 w6", "w3 w4 w5 w6 w7"),
        (None, "w0 w1 w2 w3 w4"),
    ],
)
def test_the_window_holds_the_answer(words: PreTrainedTokenizerFast, answer: str | None, expected: str) -> None:
    context = " ".join(f"w{index}" for index in range(10))
    answers, start = ([], None) if answer is None else ([answer], context.index(answer))
    assert context_window(Question("T", context, "?", answers, start), words, max_tokens=5) == expected
    assert context_window(Question("T", context, "?", answers, start), words, max_tokens=10) == context


def test_prompts_with_and_without_context() -> None:
    question = Question("T", "Paris is in France.", "Where is Paris?", ["France"], 12)
    assert prompt_text(question, None) == "Question: Where is Paris?\nAnswer:"
    assert prompt_text(question, "Paris is in France.") == (
        "Context: Paris is in France.\nQuestion: Where is Paris?\nAnswer:"
    )


OFFICIAL = Path(__file__).parents[4] / "shared" / "data" / "squad"


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official SQuAD files are not beside the checkout")
def test_official_files() -> None:
    version_1, version_2 = load_squad(OFFICIAL / "dev-v1.1.json.gz"), load_squad(OFFICIAL / "dev-v2.0.json.gz")
    assert (len(version_1), len(version_2)) == (10_570, 11_873)
    assert sum(not question.answers for question in version_2) == 5_945
    assert all(q.context[q.answer_start :].startswith(q.answers[0]) for q in version_1 if q.answer_start is not None)
