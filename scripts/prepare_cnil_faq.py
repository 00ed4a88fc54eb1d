#!/usr/bin/env python3
"""Turns the CNIL's questions and answers into rows that `metier data prepare` reads.

    python scripts/prepare_cnil_faq.py ../shared/data/cnil-faq/squad.json out/cnil-faq-rows.jsonl

Source: etalab-ia/piaf-ml (MIT), in SQuAD's form: 512 questions, each with a page of the CNIL's answers and
the passage of it that answers. That passage is always the beginning of the page, so that reading it out
of the page would be no task: the rows are question and answer alone. No-break spaces become plain ones, and
answers shorter than 20 characters are left out (two rows of somebody's trial typing). Words that were glued
together when the pages were gathered stay as they are. Questions have no published division.
"""

import json
import sys

SHORTEST = 20


def main(source, target):
    with open(source, encoding="utf-8") as file:
        sheets = json.load(file)["data"]
    rows, short, elsewhere = [], 0, 0
    for sheet in sheets:
        for paragraph in sheet["paragraphs"]:
            for asked in paragraph["qas"]:
                answer = asked["answers"][0]
                elsewhere += answer["answer_start"] != 0
                question, text = (
                    " ".join(t.replace("\u00a0", " ").split()) for t in (asked["question"], answer["text"])
                )
                if len(text) < SHORTEST:
                    short += 1
                    continue
                rows.append({"prompt": question, "completion": text, "group": sheet["title"]})
    with open(target, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(
        f"{len(rows)} rows; {short} left out as too short; {elsewhere} answers that are not the beginning "
        "of their page",
        file=sys.stderr,
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
