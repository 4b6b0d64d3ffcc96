"""Prompt files and the stream of prompts."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharpening.data.prompts import PromptFileError, PromptStream, load_prompts

PROMPTS = ["a red circle", "ein grünes Dreieck", "two \u2028 squares"]


def test_three_formats(tmp_path):
    text = tmp_path / "prompts.txt"
    text.write_bytes("\ufeffa red circle\r\n\n  ein grünes Dreieck  \n".encode())
    assert load_prompts(text) == PROMPTS[:2]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("\n".join(json.dumps({"caption": p, "n": 1}, ensure_ascii=False) for p in PROMPTS) + "\n\n")
    assert load_prompts(lines, column="caption") == PROMPTS
    table = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": [*PROMPTS, None, " "], "n": range(5)}), table)
    assert load_prompts(table) == PROMPTS


def refused(path, column="prompt"):
    with pytest.raises(PromptFileError) as caught:
        load_prompts(path, column)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert ";" in message  # what is wrong; what to do
    return message


def test_bad_files_are_refused_in_one_line(tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    assert "no file" in refused(tmp_path / "absent.txt")
    assert "no file" in refused(_folder(tmp_path / "folder.txt"))
    assert ".parquet" in refused(write("prompts.csv", b"prompt\na\n"))
    for suffix in ("txt", "jsonl", "parquet"):
        assert "is empty" in refused(write(f"empty.{suffix}", b""))
    assert "no usable prompt" in refused(write("blank.txt", b"\n  \n"))
    assert "not UTF-8 (byte 2)" in refused(write("latin.txt", "grünes".encode("latin-1")))
    assert "not UTF-8" in refused(write("latin.jsonl", '{"prompt": "grün"}'.encode("latin-1")))
    assert "line 2 is not JSON" in refused(write("broken.jsonl", b'{"prompt": "a"}\n{"prompt": \n'))
    assert "line 1 is not a JSON object" in refused(write("list.jsonl", b'["a"]\n'))
    assert "not a readable Parquet" in refused(write("broken.parquet", b"PAR1 nonsense PAR1"))
    assert "no usable prompt" in refused(write("numbers.jsonl", b'{"prompt": 3}\n'))


def _folder(path):
    path.mkdir()
    return path


def test_wrong_column_names_those_present(tmp_path):
    table = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"caption": ["a"], "score": [1.0]}), table)
    assert "no column 'prompt'; choose one of: caption, score" in refused(table)
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"caption": "a", "score": 1}\n')
    assert "line 1 has no column 'text'; choose one of: caption, score" in refused(lines, "text")
    numbers = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"prompt": [1, 2]}), numbers)
    assert "no usable prompt" in refused(numbers)


def test_truncated_parquet_is_refused(tmp_path):
    table = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": ["a"] * 1000}), table)
    table.write_bytes(table.read_bytes()[:200])
    assert "not a readable Parquet" in refused(table)


def test_stream_walks_whole_epochs():
    prompts = [f"prompt {i}" for i in range(10)]
    stream = PromptStream(prompts, run_seed=3, prompts_per_update=4)
    drawn = [stream.prompt(update, slot) for update in range(10) for slot in range(4)]
    epochs = [drawn[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == sorted(prompts) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4  # shuffled anew


def test_stream_is_stateless():
    prompts = [f"prompt {i}" for i in range(10)]
    stream = PromptStream(prompts, 3, 4)
    places = [(update, slot) for update in range(6) for slot in range(7)]
    forwards = {place: stream.prompt(*place) for place in places}
    other = PromptStream(prompts, 3, 4)
    assert forwards == {place: other.prompt(*place) for place in reversed(places)}
    assert forwards != {place: PromptStream(prompts, 4, 4).prompt(*place) for place in places}


def test_refills_are_drawn_apart_from_the_epoch():
    prompts = [f"prompt {i}" for i in range(5)]
    stream = PromptStream(prompts, 0, 2)
    drawn = Counter(stream.prompt(update, slot) for update in range(200) for slot in range(2, 7))
    assert set(drawn) == set(prompts)
    assert max(drawn.values()) < 260  # 1,000 draws over five prompts
    assert [stream.prompt(0, slot) for slot in range(2)] != [stream.prompt(0, slot) for slot in range(2, 4)]


def test_stream_needs_a_prompt():
    with pytest.raises(ValueError, match="at least one"):
        PromptStream([], 0, 4)
