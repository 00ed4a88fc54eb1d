#!/usr/bin/env python3
"""Recomputes every number of a proof from its recorded answers, independently of Metier's code.

    python scripts/check_report.py proof/report.json

Scores with sacrebleu, scikit-learn or plain definitions; intervals with statsmodels and scipy; money
from the formulas of docs/guide/prove.md. What is computed exactly must agree to the digits that the
report prints. Intervals from random resamples are drawn anew with numpy's generator and must agree
within the noise of that drawing, which is stated beside each. Needs scripts/requirements.txt.
"""

import hashlib
import json
import math
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF, TER
from scipy import stats
from sklearn.metrics import accuracy_score, cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

HOURS = 730.0
checked = Counter()
wrong = []


def same(place, ours, theirs, tolerance):
    """Notes whether the report's number is the one computed here."""
    checked[place.split(" ")[0]] += 1
    if (ours is None) != (theirs is None):
        wrong.append(f"{place}: the report says {theirs}, here it is {ours}")
    elif ours is not None and not math.isclose(ours, theirs, rel_tol=0, abs_tol=tolerance):
        wrong.append(f"{place}: the report says {theirs}, here it is {ours}")


def exactly(place, ours, theirs):
    checked[place.split(" ")[0]] += 1
    if ours != theirs:
        wrong.append(f"{place}: the report says {str(theirs)[:120]}, here it is {str(ours)[:120]}")


def token_f1(answer, reference):
    words = re.compile(r"[^\W_]+")
    ours, theirs = Counter(words.findall(answer.lower())), Counter(words.findall(reference.lower()))
    if not ours or not theirs:
        return float(not ours and not theirs)
    shared = sum((ours & theirs).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / sum(ours.values()), shared / sum(theirs.values())
    return 2 * precision * recall / (precision + recall)


def as_json(text):
    try:
        return True, json.loads(text, parse_constant=not_json)
    except ValueError:
        return False, None


def not_json(constant):
    raise ValueError(f"{constant} is not JSON")


def equal(a, b):
    """Python holds True and 1 for the same; JSON does not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def json_field_accuracy(answer, reference):
    fields = json.loads(reference)
    valid, found = as_json(answer)
    if not valid or not isinstance(found, dict):
        return 0.0
    if not fields:
        return float(equal(found, fields))
    return sum(name in found and equal(found[name], value) for name, value in fields.items()) / len(fields)


def json_exact(answer, reference):
    valid, found = as_json(answer)
    return float(valid and equal(found, json.loads(reference)))


METRICS = {
    "exact_match": lambda a, r: float(accuracy_score([r.strip()], [a["answer"].strip()])),
    "token_f1": lambda a, r: token_f1(a["answer"], r),
    "json_valid": lambda a, r: float(as_json(a["answer"])[0]),
    "json_exact": lambda a, r: json_exact(a["answer"], r),
    "json_field_accuracy": lambda a, r: json_field_accuracy(a["answer"], r),
    "bleu": lambda a, r: sacrebleu.sentence_bleu(a["answer"], [r]).score / 100.0,
    "chrf": lambda a, r: sacrebleu.sentence_chrf(a["answer"], [r]).score / 100.0,
    "ter": lambda a, r: sacrebleu.sentence_ter(a["answer"], [r]).score / 100.0,
    "rubric": lambda a, r: max(a["grade"] - 1, 0) / 4.0,
}


# Metrics whose value is one of all answers together.
CORPUS = {"bleu": BLEU, "chrf": CHRF, "ter": TER}

# Metrics that give parts of a point, whatever this test set's scores happen to be.
GRADED = {"token_f1", "json_field_accuracy", "rubric"}


def thought(values, largest):
    """The size of the two thought values that stand beside fewer than ten other than 0."""
    moved = values[values != 0]
    if len(moved) >= 10:
        return 0.0
    return math.sqrt(np.mean(moved**2)) if len(moved) else largest


class Clusters:
    """What clusters do to the error of a mean."""

    def __init__(self, values, clusters):
        n, names = len(values), list(dict.fromkeys(clusters))
        place = {name: i for i, name in enumerate(names)}
        of = np.array([place[name] for name in clusters])
        count = len(names)
        size, total = np.bincount(of), np.bincount(of, weights=values, minlength=count)
        left_out = (values.sum() - total) / (n - size)
        self.effective = n * n / (size.astype(float) ** 2).sum()
        self.jackknife = math.sqrt((count - 1) / count * ((left_out - values.mean()) ** 2).sum())
        spread = values.var(ddof=1) / n
        self.effect = max(self.jackknife**2 / spread, 1.0) if spread > 0 else n / count
        self.squared = self.jackknife**2 + 2 * (thought(total, n / count) / n) ** 2

    def quantile(self, confidence):
        return stats.t.ppf(0.5 + confidence / 2, max(self.effective - 1, 1.0))


def wilson(share, n, quantile):
    centre = share + quantile**2 / (2 * n)
    half = quantile * math.sqrt(share * (1 - share) / n + quantile**2 / (4 * n * n))
    scale = 1 + quantile**2 / n
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def interval(scores, metric, clusters, repeated):
    n, values = len(scores), set(scores.tolist())
    shares = values <= {0.0, 1.0} and metric not in GRADED and not repeated
    if clusters:
        known = Clusters(scores, clusters)
        binary = shares or scores.var() == 0
        at = n / known.effect if binary else scores.mean() * (1 - scores.mean()) / known.squared
        return wilson(scores.mean(), at, known.quantile(0.95))
    if shares:
        return proportion_confint(scores.sum(), n, method="wilson")
    if scores.var() == 0:
        return proportion_confint(scores.mean() * n, n, method="wilson")
    low, high = stats.t.interval(0.95, n - 1, loc=scores.mean(), scale=stats.sem(scores))
    return max(low, 0.0), min(high, 1.0)


def corpus(metric, draws, items, rng, resamples=400):
    """The value of all answers together, and its interval by resampling examples."""
    pairs = [
        ("" if draw.get("error") is not None else draw["answer"], item["reference"])
        for some, item in zip(draws, items)
        for draw in some
    ]
    texts, references = map(list, zip(*pairs))
    ours = CORPUS[metric]()
    value = ours.corpus_score(texts, [references]).score / 100.0
    # As many answers to each example: rows of statistics, one for each example.
    rows = np.array(ours._extract_corpus_statistics(texts, [references]), dtype=float)
    rows = rows.reshape(len(items), -1, rows.shape[1])
    chosen = rng.integers(0, len(items), size=(resamples, len(items)))
    found = [ours._aggregate_and_compute(rows[c].reshape(-1, rows.shape[2]).tolist()).score / 100.0 for c in chosen]
    return value, np.percentile(found, [2.5, 97.5]), np.std(found)


def bootstrap(values, statistic, rng, resamples=4000):
    n = len(next(iter(values.values())))
    draws = rng.integers(0, n, size=(resamples, n))
    found = sorted(statistic({name: v[draw] for name, v in values.items()}) for draw in draws)
    return found[round(0.025 * (resamples - 1))], found[round(0.975 * (resamples - 1))]


def check_files(folder, text, report):
    for name, digest in report["files"].items():
        path = folder / digest["path"] if digest.get("path") else None
        if path is not None and path.is_file():
            exactly(f"digest {name}", hashlib.sha256(path.read_bytes()).hexdigest(), digest["sha256"])
    # The seal is the digest of the file without its last field.
    head, _, _ = text.rpartition(',\n  "seal"')
    exactly("digest seal", hashlib.sha256((head + "\n}\n").encode()).hexdigest(), report["seal"])


def check_candidate(report, candidate, rows, items, clusters, rng):
    name = candidate["name"]
    # A question may have been asked more than once: an example's score is the mean over its answers.
    draws = [[row, *row.get("repeats", [])] for row in rows]
    scores = {}
    for metric, said in candidate["metrics"].items():
        recorded = np.array([row["scores"][metric] for row in rows])
        if metric in METRICS:
            score = METRICS[metric]
            one = lambda draw, item: 0.0 if draw.get("error") is not None else score(draw, item["reference"])
            ours = np.array([np.mean([one(draw, item) for draw in some]) for some, item in zip(draws, items)])
            for row, one in zip(rows, ours):
                same(f"score {name} {metric} {row['id']}", one, row["scores"][metric], 1e-9)
        scores[metric] = recorded
        exactly(f"count {name} {metric}", len(rows), said["n"])
        if metric in CORPUS:
            value, (low, high), deviation = corpus(metric, draws, items, rng)
            same(f"corpus {name} {metric}", value, said["value"], 1e-9)
            # The ends of 400 and 1,000 resamples differ by chance by a sixth of the standard error.
            same(f"corpus-interval {name} {metric} low", low, said["ci95"][0], 0.5 * deviation)
            same(f"corpus-interval {name} {metric} high", high, said["ci95"][1], 0.5 * deviation)
            continue
        same(f"mean {name} {metric}", recorded.mean(), said["value"], 1e-9)
        repeated = any(len(some) > 1 for some in draws)
        low, high = interval(recorded, metric, clusters, repeated)
        same(f"interval {name} {metric} low", low, said["ci95"][0], 1e-6)
        same(f"interval {name} {metric} high", high, said["ci95"][1], 1e-6)
    failed = sum(any(draw.get("error") is not None for draw in some) for some in draws)
    exactly(f"failed {name}", failed, candidate["failed"])
    decisive = scores[report["metric"]]
    exactly(f"wrong {name}", [i["id"] for i, s in zip(items, decisive) if s < 1], candidate.get("wrong", []))
    every = [draw for some in draws for draw in some]
    times = sorted(row["seconds"] for row in every if row.get("seconds") is not None)
    if times:
        at = lambda share: times[max(1, math.ceil(share * len(times))) - 1]
        for field, value in (("p50", at(0.5)), ("p95", at(0.95)), ("max", times[-1])):
            same(f"latency {name} {field}", value, candidate["latency"][field], 1e-9)
    known = [(r["prompt_tokens"], r["answer_tokens"]) for r in every if r.get("prompt_tokens") is not None and r.get("answer_tokens") is not None]
    if known and candidate["traffic"]:
        prompt, answer = np.mean(known, axis=0)
        same(f"tokens {name} prompt", prompt, candidate["traffic"]["prompt_tokens"], 1e-9)
        same(f"tokens {name} answer", answer, candidate["traffic"]["answer_tokens"], 1e-9)
    return scores


def check_comparison(comparison, scores, clusters):
    metric, a, b = comparison["metric"], comparison["a"], comparison["b"]
    place = f"{metric} {b} - {a}"
    differences = scores[b][metric] - scores[a][metric]
    same(f"difference {place}", differences.mean(), comparison["difference"], 1e-9)
    low, high = paired_interval(scores[a][metric], scores[b][metric], clusters, 0.95)
    same(f"paired-interval {place} low", low, comparison["ci95"][0], 1e-6)
    same(f"paired-interval {place} high", high, comparison["ci95"][1], 1e-6)
    test = comparison["test"]
    if test["name"] == "mcnemar_exact":
        only_b, only_a = int((differences > 0).sum()), int((differences < 0).sum())
        exactly(f"discordant {place}", [only_b, only_a], [test["only_b"], test["only_a"]])
        p = mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue if only_a + only_b else 1.0
        same(f"p-value {place}", p, comparison["p_value"], 1e-9 + 1e-6 * p)


def decided(scores, report, alpha):
    """Holm's procedure on intervals drawn anew: the confidence that each judged candidate's must have."""
    plan, metric = report["plan"], report["metric"]
    names = [plan["judged"], *plan.get("also_judged", [])]
    difference = {name: scores[name][metric] - scores[plan["against"]][metric] for name in names}
    p = {name: paired_p(scores[plan["against"]][metric], scores[name][metric]) for name in names}
    said = {j["name"]: j for j in report["judged"]}
    undecided, found = list(names), {}
    while undecided:
        level = alpha / len(undecided)
        proven = []
        for name in undecided:
            found[name] = 1 - level
            # The interval itself is checked below; here its place decides what is left.
            beyond = said[name]["interval"][0] > plan["margin"] and said[name]["confidence"] >= 1 - level - 1e-9
            exact = plan["margin"] < 0 or said[name]["p_value"] <= level + 1e-12
            if beyond and exact:
                proven.append(name)
        if not proven:
            break
        undecided = [name for name in undecided if name not in proven]
    return names, difference, p, found


def paired_p(a, b):
    """The exact p-value where scores are zeros and ones, else None: it is resampled."""
    if not set(a.tolist()) | set(b.tolist()) <= {0.0, 1.0}:
        return None
    only_b, only_a = int((b > a).sum()), int((b < a).sum())
    return mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue if only_a + only_b else 1.0


def paired_interval(a, b, clusters, confidence):
    """The interval of the mean of b minus a: which one follows from the scores."""
    d, n = b - a, len(a)
    counts = np.array([(d > 0).sum(), (d < 0).sum(), n], dtype=float)
    binary = set(a.tolist()) | set(b.tolist()) <= {0.0, 1.0}
    if clusters:
        known = Clusters(d, clusters)
        quantile, error = known.quantile(confidence), math.sqrt(known.squared)
        counts /= known.effect
    else:
        quantile = stats.norm.ppf(0.5 + confidence / 2) if binary else stats.t.ppf(0.5 + confidence / 2, n - 1)
        error = math.sqrt(d.var(ddof=1) / n + 2 * (thought(d, 1.0) / n) ** 2)
    low, high = tango(*counts, quantile) if binary else (d.mean() - quantile * error, d.mean() + quantile * error)
    return max(low, -1.0), min(high, 1.0)


def tango(b, c, n, z):
    """All differences that the score test does not refuse (Tango 1998), by search."""

    def score(delta):
        # The shares of discordant examples that are likeliest under this difference.
        a_, b_, c_ = 2 * n, -b - c + (2 * n - b + c) * delta, -c * delta * (1 - delta)
        q = (math.sqrt(max(b_ * b_ - 4 * a_ * c_, 0)) - b_) / (2 * a_)
        variance = n * (2 * q + delta * (1 - delta))
        above = b - c - n * delta
        if variance <= 1e-15:
            return 0.0 if abs(above) < 1e-9 else math.copysign(math.inf, above)
        return above / math.sqrt(variance)

    def end(outside):
        inside = (b - c) / n
        if abs(score(outside)) <= z:
            return outside
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if abs(score(middle)) > z else (middle, outside)
        return inside

    return end(-1.0), end(1.0)


def check_judged(report, scores, clusters):
    look = report["plan"].get("look")
    alpha = 0.05
    if look:
        shares = [k / look["planned"] for k in range(1, min(look["at"], look["planned"]) + 1)]
        spent = [0.0] + [2 - 2 * stats.norm.cdf(stats.norm.ppf(0.975) / math.sqrt(t)) for t in shares]
        alpha = spent[-1] - spent[-2]
    names, difference, p, confidence = decided(scores, report, alpha)
    exactly("judged names", names, [j["name"] for j in report["judged"]])
    exactly("judged one decides", 1, sum(j["decides"] for j in report["judged"]))
    worth = [j for j in report["judged"] if j["verdict"] == "worth_it"]
    open_ = [j for j in report["judged"] if j["verdict"] == "not_proven"]
    best = max(worth, key=lambda j: j["difference"]) if worth else (open_ or report["judged"])[0]
    exactly("judged decides", best["name"], next(j["name"] for j in report["judged"] if j["decides"]))
    exactly("judged verdict", best["verdict"], report["verdict"])
    for j in report["judged"]:
        place = f"judged {j['name']}"
        d = difference[j["name"]]
        same(f"{place} difference", d.mean(), j["difference"], 1e-9)
        same(f"{place} confidence", confidence[j["name"]], j["confidence"], 1e-7)
        if p[j["name"]] is not None and not clusters:
            same(f"{place} p", p[j["name"]], j["p_value"], 1e-9)
        against = scores[report["plan"]["against"]][report["metric"]]
        low, high = paired_interval(against, against + d, clusters, j["confidence"])
        same(f"{place} low", low, j["interval"][0], 1e-6)
        same(f"{place} high", high, j["interval"][1], 1e-6)
    adjusted = multipletests([j["p_value"] for j in report["judged"]], method="holm")[1]
    for j, ours in zip(report["judged"], adjusted):
        same(f"judged {j['name']} holm", ours, j["p_holm"], 1e-9)


def check_confused(report, items, rows):
    """Which right answers the candidate that the verdict is about takes for which others."""
    references = [item["reference"].strip() for item in items]
    classes = set(references)
    pairs = {}
    if all(len(i["reference"].encode()) <= 100 for i in items) and 2 * len(classes) <= len(items):
        for item, row, reference in zip(items, rows, references):
            said = (row["answer"] or "").strip() if row.get("error") is None else ""
            said = said if said in classes else ""
            if said != reference:
                pairs.setdefault((reference, said), []).append(item["id"])
    found = sorted(pairs.items(), key=lambda pair: -len(pair[1]))[:20]
    said = [((pair["reference"], pair["answer"]), pair["ids"]) for pair in report.get("confused", [])]
    exactly("confused", found, said)


def check_leaks(report, items, scores):
    leaked = set(report["plan"].get("leaked", []))
    clean = np.array([item["id"] not in leaked for item in items])
    said = report.get("without_leaks")
    exactly("leaks any", not clean.all(), said is not None)
    if said is None:
        return
    exactly("leaks leaked", int((~clean).sum()), said["leaked"])
    metric = report["metric"]
    for name, found in said["scores"].items():
        ours = scores[name][metric]
        same(f"leaks {name} all", ours.mean(), found["all"], 1e-9)
        same(f"leaks {name} clean", ours[clean].mean() if clean.any() else None, found["clean"], 1e-9)
        exactly(f"leaks {name} n", int(clean.sum()), found["n"])
    if said["difference"] is not None:
        a, b = report["changed"]["a"], report["changed"]["b"]
        d = scores[b][metric][clean] - scores[a][metric][clean]
        same("leaks difference", d.mean(), said["difference"], 1e-9)


def check_judgement(report, games, said, items, answers):
    """What the games of a judge come to."""
    value = {"a": 0.0, "tie": 0.5, "b": 1.0}
    results = [value[g[0]] if g[0] is not None and g[0] == g[1] else 0.5 for g in games["played"]]
    flips = [g[0] is not None and g[1] is not None and g[0] != g[1] for g in games["played"]]
    place = f"judge {games['judge']} {games['b']}"
    exactly(f"{place} results", results, said["results"])
    same(f"{place} win-rate", np.mean(results), said["win_rate"], 1e-9)
    same(f"{place} flips", np.mean(flips), said["position_flips"], 1e-9)
    exactly(f"{place} failed", sum(o is None for g in games["played"] for o in g), said["failed"])
    longer = [len(b["answer"] or "") - len(a["answer"] or "") for a, b in zip(answers[games["a"]], answers[games["b"]])]
    decided_ = [(r == 1.0) == (l > 0) for r, l in zip(results, longer) if r != 0.5 and l != 0]
    same(f"{place} longer", np.mean(decided_) if decided_ else None, said["longer_wins"], 1e-9)
    names = {0.0: "a", 0.5: "tie", 1.0: "b"}
    pairs = [(names[r], games["labels"][i["id"]]) for r, i in zip(results, items) if i["id"] in games["labels"]]
    exactly(f"{place} labels", bool(pairs), said["agreement"] is not None)
    if pairs:
        observed = np.mean([x == y for x, y in pairs])
        chance = sum(np.mean([x == k for x, _ in pairs]) * np.mean([y == k for _, y in pairs]) for k in value)
        same(f"{place} agreement", observed, said["agreement"]["agreement"], 1e-9)
        kappa = (observed - chance) / (1 - chance) if chance < 1 else 1.0
        same(f"{place} kappa", kappa, said["agreement"]["kappa"], 1e-9)


def check_grades(report, said, items, answers):
    """What people's preferences say of the better grade."""
    place = f"grades {said['judge']} {said['b']}"
    a, b = answers[said["a"]], answers[said["b"]]
    none = lambda rows: sum(any(draw.get("grade") == 0 for draw in [row, *row.get("repeats", [])]) for row in rows)
    exactly(f"{place} unreadable", [none(a), none(b)], said["unreadable"])
    labels = report["plan"]["rubric"].get("labels", {}).get(said["b"], {})
    better = lambda x, y: "tie" if x == y else "a" if x > y else "b"
    pairs = [
        (better(x["grade"], y["grade"]), labels[i["id"]])
        for i, x, y in zip(items, a, b)
        if i["id"] in labels and x.get("grade") is not None and y.get("grade") is not None
    ]
    exactly(f"{place} labels", len(pairs), said["agreement"]["n"] if said["agreement"] else 0)
    if pairs:
        same(f"{place} kappa", cohen_kappa_score(*zip(*pairs)), said["agreement"]["kappa"], 1e-9)


def rates(price, tokens, service):
    if service:
        return price["services"][service]
    found = price["rates"]
    for tier in price.get("tiers", []):
        if tokens > tier["above"]:
            found = tier["rates"]
    return found


def takes(arm, rows):
    """What each request takes: money of the price's currency, or seconds of a machine."""
    running, found = arm["running"], []
    for row in rows:
        given, out = row["prompt_tokens"], row["answer_tokens"]
        if running["kind"] == "machine":
            speed = running["throughput"]
            found.append(given / speed["prefill"] + out / speed["decode"])
            continue
        r = rates(running["price"], given, running["service"])
        share = running["cached_share"]
        cached = min(given, given * share if share is not None else row.get("cached_tokens") or 0)
        written = min(row.get("cache_write_tokens") or 0, given - cached)
        read = r.get("cached", r["input"]) if r.get("cached") is not None else r["input"]
        write = r["cache_write"] if r.get("cache_write") is not None else r["input"]
        found.append(((given - cached - written) * r["input"] + cached * read + written * write + out * r["output"]) / 1e6)
    return np.array(found)


class Arm:
    def __init__(self, plan, arm, rows):
        running = arm["running"]
        currency = running["currency"] if running["kind"] == "machine" else running["price"]["currency"]
        others = {e["from"]: e["rate"] for e in plan["exchange"]}
        self.rate = 1.0 if currency == plan["currency"] else others[currency]
        self.machine = running if running["kind"] == "machine" else None
        self.takes = takes(arm, rows) * (1.0 if self.machine else self.rate)
        self.one_off = sum(o["amount"] for o in arm["one_off"])
        self.fixed = arm["fixed_per_month"] + self.one_off / plan["amortise_months"]

    def machines(self, mean, volume):
        m = self.machine
        capacity = m["hours_per_month"] * 3600 * m["utilisation"] / (mean * m["peak"])
        return max(math.ceil(volume / capacity - 1e-9), m["at_least"], 1)

    def month(self, mean, volume):
        if not self.machine:
            return self.fixed + volume * mean
        m = self.machine
        return self.fixed + self.machines(mean, volume) * m["hours_per_month"] * m["price_per_hour"] * self.rate


def break_even(a, mean_a, b, mean_b):
    """The first volume from which b is not dearer, searched for step by step; None: never."""
    if not (b.machine and not a.machine):
        return NotImplemented
    m = b.machine
    each = m["hours_per_month"] * m["price_per_hour"] * b.rate
    capacity = m["hours_per_month"] * 3600 * m["utilisation"] / (mean_b * m["peak"])
    for n in range(max(m["at_least"], 1), 100000):
        volume = (b.fixed - a.fixed + n * each) / mean_a
        if volume <= 0:
            return 0.0
        if volume <= n * capacity:
            return volume
    return None


def check_money(report, answers, scores, rng):
    plan, said = report["plan"]["economics"], report["economics"]
    known = [
        i
        for i in range(len(next(iter(answers.values()))))
        if all(answers[arm["name"]][i].get("prompt_tokens") is not None and answers[arm["name"]][i].get("answer_tokens") is not None for arm in plan["arms"])
    ]
    arms = {arm["name"]: Arm(plan, arm, [answers[arm["name"]][i] for i in known]) for arm in plan["arms"]}
    volume = plan["requests_per_month"]
    for arm, reported in zip(plan["arms"], said["arms"]):
        ours = arms[arm["name"]]
        mean = ours.takes.mean()
        if volume:
            per_1000 = ours.month(mean, volume) / volume * 1000
            same(f"month {arm['name']}", ours.month(mean, volume), reported["per_month"]["value"], 1e-6)
        elif ours.machine:
            m = ours.machine
            per_1000 = mean * m["price_per_hour"] * ours.rate / (3600 * m["utilisation"]) * 1000
        else:
            per_1000 = mean * 1000
        same(f"cost {arm['name']}", per_1000, reported["per_1000_requests"]["value"], 1e-9)
        for x, y in reported["curve"]:
            # Where one more machine is needed the curve steps, and rounding decides on which side x lies.
            sides = [ours.month(mean, x * (1 + side)) for side in (0, -1e-9, 1e-9)]
            same(f"curve {arm['name']} {x}", min(sides, key=lambda side: abs(side - y)), y, 1e-6 * max(1, y))
    for pair in said["pairs"]:
        a, b = arms[pair["a"]], arms[pair["b"]]
        mean_a, mean_b = a.takes.mean(), b.takes.mean()
        place = f"{pair['b']} beside {pair['a']}"
        found = break_even(a, mean_a, b, mean_b)
        if found is not NotImplemented:
            same(f"break-even {place}", found, pair["break_even"]["value"], 1e-6 * max(1, found or 0))
            if found:
                low, high = bootstrap({"a": a.takes, "b": b.takes}, lambda v: break_even(a, v["a"].mean(), b, v["b"].mean()) or math.inf, rng, 400)
                width = abs(high - low) if math.isfinite(high) else math.inf
                noise = 0.35 * width + 1e-6 * found
                for end, ours in (("low", low), ("high", high)):
                    theirs = pair["break_even"]["ci95"][0 if end == "low" else 1]
                    if math.isfinite(ours) and theirs is not None:
                        same(f"break-even-interval {place} {end}", ours, theirs, noise)
        if volume:
            saving = a.month(mean_a, volume) - b.month(mean_b, volume)
            same(f"saving {place}", saving, pair["saving_per_month"]["value"], 1e-6 * max(1, abs(saving)))
            drop = saving / (a.month(mean_a, volume) - a.fixed)
            same(f"price-drop {place}", drop, pair["price_drop"]["value"], 1e-9)
            metric = report["metric"]
            gained = scores[pair["b"]][metric][known].mean() - scores[pair["a"]][metric][known].mean()
            cost = -saving / (volume * gained) if gained else None
            cost = cost if cost is not None and cost >= 0 else None
            same(f"error-cost {place}", cost, pair["error_cost"]["value"], 1e-9 + 1e-9 * abs(cost or 0))


def main():
    path = Path(sys.argv[1])
    folder, text = path.parent, path.read_text(encoding="utf-8")
    report = json.loads(text)
    rng = np.random.default_rng(2026)
    check_files(folder, text, report)
    read = lambda name: [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    items = read("items.jsonl")
    # Those without a group stand alone; where all do, there are no clusters.
    clusters = [item.get("group") or ("alone", i) for i, item in enumerate(items)]
    clusters = clusters if len(set(clusters)) < len(clusters) else []
    answers, scores = {}, {}
    for place, candidate in enumerate(report["candidates"]):
        name = candidate["name"]
        file = next(f for f in report["files"] if f.startswith(f"answers/{place + 1}_"))
        answers[name] = read(file)
        exactly(f"order {name}", [row["id"] for row in answers[name]], [item["id"] for item in items])
        scores[name] = check_candidate(report, candidate, answers[name], items, clusters, rng)
        # What a request takes is the mean over its answers.
        for row in (row for row in answers[name] if row.get("repeats")):
            for field in ("prompt_tokens", "answer_tokens", "cached_tokens", "cache_write_tokens"):
                counts = [draw.get(field) for draw in [row, *row["repeats"]]]
                row[field] = np.mean([count or 0 for count in counts]) if any(c is not None for c in counts) else None
    for comparison in report["comparisons"]:
        check_comparison(comparison, scores, clusters)
    changed, metric = report["changed"], report["metric"]
    d = scores[changed["b"]][metric] - scores[changed["a"]][metric]
    exactly("won", [i["id"] for i, x in zip(items, d) if x > 0], changed["won"])
    exactly("lost", [i["id"] for i, x in zip(items, d) if x < 0], changed["lost"])
    check_judged(report, scores, clusters)
    check_confused(report, items, answers[changed["b"]])
    check_leaks(report, items, scores)
    for grades in report.get("grades", []):
        check_grades(report, grades, items, answers)
    games, judgements = report["plan"].get("games", []), report.get("judgements", [])
    exactly("judge count", len(games), len(judgements))
    for recorded, said in zip(games, judgements):
        check_judgement(report, recorded, said, items, answers)
    if report.get("economics"):
        check_money(report, answers, scores, rng)
    for what, count in sorted(checked.items()):
        print(f"{count:7} {what}")
    if wrong:
        print(f"{len(wrong)} of {sum(checked.values())} differ:", *wrong[:40], sep="\n  ")
        return 1
    print(f"all {sum(checked.values())} agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
