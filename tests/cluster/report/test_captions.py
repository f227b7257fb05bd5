"""The blocks of the caption browser hold the captions, the most important first, within their budget."""

import base64
import gzip

import numpy as np

from cluster.report.captions import BLOCK, COLUMNS, LEAST_BLOCK, Captions, blocks


def many(number: int) -> Captions:
    """Captions that were paid ever less."""
    columns = {
        name: np.arange(number)[::-1].astype(kind) if name == "paid" else np.arange(number).astype(kind)
        for name, kind in COLUMNS.items()
    }
    texts = [f"The {np.random.default_rng(n).integers(10**12)} bites number {n}!" for n in range(number)]
    return Captions(ids=np.arange(number, dtype=np.uint64), texts=texts, columns=columns, step_unit=1)


def unpacked(rows: int, encoded: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Texts and columns of a block."""
    data, offset, columns = gzip.decompress(base64.b64decode(encoded)), 0, {}
    for name, kind in COLUMNS.items():
        width = np.dtype(kind).itemsize
        planes = np.frombuffer(data, np.uint8, rows * width, offset).reshape(width, rows)
        columns[name] = np.ascontiguousarray(planes.T).view(kind).ravel()
        offset += rows * width
    return data[offset:].decode().split("\n"), columns


def test_blocks_hold_every_caption_with_its_columns() -> None:
    captions = many(BLOCK + 5)
    found = list(blocks(captions, 10**9))
    assert [rows for rows, _ in found] == [BLOCK, 5]
    by_text = {}
    for rows, encoded in found:
        texts, columns = unpacked(rows, encoded)
        by_text |= {text: {name: column[i] for name, column in columns.items()} for i, text in enumerate(texts)}
    assert len(by_text) == BLOCK + 5
    for row in (0, 1, BLOCK, BLOCK + 4):
        for name in COLUMNS:
            assert by_text[captions.texts[row]][name] == captions.columns[name][row]


def test_a_budget_keeps_the_most_important() -> None:
    captions = many(3 * LEAST_BLOCK)
    whole = sum(len(encoded) for _, encoded in blocks(captions, 10**9))
    found = list(blocks(captions, whole // 2))
    kept = sum(rows for rows, _ in found)
    assert 0 < kept < len(captions.texts)
    assert sum(len(encoded) for _, encoded in found) <= whole // 2
    texts = {text for rows, encoded in found for text in unpacked(rows, encoded)[0]}
    assert texts == set(captions.texts[:kept])


def test_a_text_with_line_ends_stays_one_caption() -> None:
    captions = many(3)
    captions.texts[1] = "two\nlines"
    ((rows, encoded),) = blocks(captions, 10**9)
    texts, _ = unpacked(rows, encoded)
    assert sorted(texts) == sorted([captions.texts[0], "two lines", captions.texts[2]])
