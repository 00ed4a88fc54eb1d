#!/usr/bin/env python3
"""Writes testdata/parquet/: small Parquet files as the Hub has them, and the rows that are in them.

Usage: python scripts/make_parquet_golden.py
Needs: pyarrow.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

CHAT = [
    {
        "messages": [
            {"role": "user", "content": "Été ?", "weight": None},
            {"role": "assistant", "content": "Oui.", "weight": None},
        ],
        "score": 0.5,
    },
    {
        "messages": [
            {"role": "system", "content": "Be brief.", "weight": None},
            {"role": "user", "content": "One", "weight": None},
            {"role": "assistant", "content": "1", "weight": 0},
            {"role": "user", "content": "Two", "weight": None},
            {"role": "assistant", "content": "2", "weight": 1},
        ],
        "score": None,
    },
]
PAIRS = [{"prompt": f"question {i % 7}", "completion": f"answer {i}", "n": i} for i in range(300)]


def main():
    out = Path(__file__).resolve().parent.parent / "testdata/parquet"
    out.mkdir(parents=True, exist_ok=True)
    chat, pairs = pa.Table.from_pylist(CHAT), pa.Table.from_pylist(PAIRS)
    pq.write_table(chat, out / "chat.parquet")
    for compression in ("none", "gzip", "lz4", "zstd"):
        name = out / f"pairs_{compression}.parquet"
        pq.write_table(pairs, name, compression=compression, row_group_size=100)
    pq.write_table(pairs, out / "pairs_v2.parquet", data_page_version="2.0", use_dictionary=False)
    # What no text form can use must not stand in the way of the rest.
    odd = pa.table(
        {
            "prompt": pa.array(["a", "b"]),
            "completion": pa.array([b"c", b"d"], pa.binary()),
            "picture": pa.array([b"\xff\xd8", b"\x00\xff"], pa.binary()),
            "when": pa.array([1_700_000_000_000, None], pa.timestamp("ms")),
            "price": pa.array(["1.50", "2.25"]).cast(pa.decimal128(10, 2)),
            "tags": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int32())),
        }
    )
    pq.write_table(odd, out / "odd.parquet")
    # A dictionary makes one text into very many rows.
    bomb = pa.table({"prompt": pa.array(["x" * 4096] * 100_000), "completion": ["y"] * 100_000})
    pq.write_table(bomb, out / "bomb.parquet", compression="gzip", row_group_size=100_000)
    rows = {"chat": CHAT, "pairs": PAIRS}
    (out / "golden.json").write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in sorted(out.iterdir()):
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
