#!/usr/bin/env python3
"""Writes testdata/statistics.json: what scipy and statsmodels say, for crates/eval/tests/statistics.rs.

    python scripts/make_golden_statistics.py

Tango's interval has no function in either; here the share that only one candidate has right is found by
maximising the likelihood numerically, and each end by scipy's root finder: another way than the closed form
that is tested. The cluster-robust error is statsmodels' of a regression on a constant, with the factor
C / (C - 1) for few clusters.
"""

import json
from pathlib import Path

import numpy as np
from scipy import optimize, stats
from statsmodels.api import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

OUT = Path(__file__).parent.parent / "testdata" / "statistics.json"


def score(d, only_b, only_a, n):
    """McNemar's statistic for a difference d other than 0 (Tango 1998)."""

    def loss(q):
        p = q + d
        rest = 1 - p - q
        terms = [(only_b, p), (only_a, q), (n - only_b - only_a, rest)]
        if any(count > 0 and share <= 0 for count, share in terms):
            return 1e300
        return -sum(count * np.log(share) for count, share in terms if count > 0)

    low, high = max(0.0, -d), (1 - d) / 2
    found = optimize.minimize_scalar(
        loss, bounds=(low, high), method="bounded", options={"xatol": 1e-14, "maxiter": 1000}
    )
    q = min([found.x, low, high], key=loss)
    variance = n * (2 * q + d - d * d)
    return (only_b - only_a - n * d) / np.sqrt(max(variance, 1e-300))


def tango(only_b, only_a, n, confidence):
    z = stats.norm.ppf(0.5 + confidence / 2)
    seen = (only_b - only_a) / n
    eps = 1e-9

    def end(sign, bound):
        f = lambda d: score(d, only_b, only_a, n) - sign * z
        inner, outer = seen, bound - np.sign(bound) * eps
        if f(inner) * f(outer) > 0:
            return bound
        return optimize.brentq(f, *sorted((inner, outer)), xtol=1e-13)

    return [end(1, -1.0), end(-1, 1.0)]


def main():
    rng = np.random.default_rng(7)
    out = {"wilson": [], "clopper_pearson": [], "mcnemar": [], "tango": [], "student": [], "clusters": [], "holm": []}
    for k, n in [(45, 50), (30, 30), (0, 30), (1, 1), (7, 9), (93, 100), (1319, 3080)]:
        lo, hi = proportion_confint(k, n, method="wilson")
        out["wilson"].append([k, n, lo, hi])
        for confidence in (0.95, 0.995):
            lo, hi = proportion_confint(k, n, alpha=1 - confidence, method="beta")
            lo, hi = (0.0 if k == 0 else lo), (1.0 if k == n else hi)
            out["clopper_pearson"].append([k, n, confidence, lo, hi])
    for b, c in [(4, 14), (0, 6), (5, 0), (209, 152), (64, 293), (88, 260), (43, 499), (79, 306), (76, 360), (3, 3)]:
        exact = mcnemar([[0, b], [c, 0]], exact=True).pvalue
        mid = min(1.0, 2 * stats.binom.cdf(min(b, c), b + c, 0.5) - stats.binom.pmf(min(b, c), b + c, 0.5))
        out["mcnemar"].append([b, c, exact, mid])
    for b, c, n in [(4, 14, 60), (9, 3, 44), (1, 0, 20), (20, 5, 100), (209, 152, 1319), (43, 499, 1319), (30, 1, 40)]:
        for confidence in (0.95, 0.995):
            out["tango"].append([b, c, n, confidence, *tango(b, c, n, confidence)])
    for n in (2, 5, 40):
        x = np.round(rng.random(n), 3)
        lo, hi = stats.t.interval(0.95, n - 1, x.mean(), stats.sem(x))
        out["student"].append({"values": x.tolist(), "ci95": [lo, hi]})
    for count in (3, 12):
        groups = np.repeat(np.arange(count), rng.integers(1, 7, count))
        x = np.round(rng.random(len(groups)) * 0.5 + rng.random(count)[groups] * 0.5, 3)
        fit = OLS(x, np.ones(len(x))).fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
        out["clusters"].append(
            {
                "values": x.tolist(),
                "clusters": groups.tolist(),
                "standard_error": float(fit.bse[0] * np.sqrt(count / (count - 1))),
            }
        )
    for p in ([0.01, 0.04, 0.03, 0.005], [0.2, 0.9, 0.0001, 0.0001, 0.06]):
        out["holm"].append({"p": p, "adjusted": multipletests(p, method="holm")[1].tolist()})
    OUT.write_text(json.dumps(out) + "\n")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
