//! Worlds whose truth is known, each drawn 2,000 times with fixed seeds: how often intervals hold it, how
//! often something is called worth it that is not, and whether the forecast number of examples suffices.
//! `cargo test -p eval --test simulated_worlds -- --nocapture` prints the tables of
//! docs/benchmarks/statistics.md.

use eval::stats::{
    PairedOptions, Pilot, mean_interval_in, paired_difference, paired_difference_in, paired_family,
    paired_interval, spent,
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

const RUNS: usize = 2000;

/// Scores of two candidates on one drawn test set.
struct Drawn {
    a: Vec<f64>,
    b: Vec<f64>,
    clusters: Vec<usize>,
}

/// How candidates answer.
#[derive(Clone, Copy)]
struct World {
    name: &'static str,
    /// Independent examples, or clusters where `mean_cluster` is above 0.
    n: usize,
    /// True shares right.
    a: f64,
    b: f64,
    /// Share of examples (of fields, where graded) that both candidates find hard or easy together.
    together: f64,
    /// Fields of an answer, each right or wrong; 1: the score is 0 or 1.
    fields: usize,
    /// Mean size of a cluster; 0: no clusters. Sizes vary as a log-normal with deviation 0.8.
    mean_cluster: f64,
    /// Share of examples whose ease is that of their cluster.
    shared: f64,
}

const PLAIN: World = World {
    name: "",
    n: 0,
    a: 0.0,
    b: 0.0,
    together: 0.7,
    fields: 1,
    mean_cluster: 0.0,
    shared: 0.0,
};

impl World {
    fn draw(&self, rng: &mut Pcg64Mcg) -> Drawn {
        let mut drawn = Drawn { a: Vec::new(), b: Vec::new(), clusters: Vec::new() };
        for unit in 0..self.n {
            let size = match self.mean_cluster > 0.0 {
                true => (self.mean_cluster * (0.8 * normal(rng)).exp()).floor().max(1.0) as usize,
                false => 1,
            };
            let ease_of_cluster: [f64; 2] = [rng.random(), rng.random()];
            for _ in 0..size {
                let (a, b) = self.answer(rng, ease_of_cluster);
                drawn.a.push(a);
                drawn.b.push(b);
                if self.mean_cluster > 0.0 {
                    drawn.clusters.push(unit);
                }
            }
        }
        drawn
    }

    /// Both candidates' scores of one example.
    fn answer(&self, rng: &mut Pcg64Mcg, ease_of_cluster: [f64; 2]) -> (f64, f64) {
        let (mut a, mut b) = (0, 0);
        for _ in 0..self.fields {
            let mut ease = |own: usize| match rng.random_bool(self.shared) {
                true => ease_of_cluster[own],
                false => rng.random(),
            };
            let (first, second) = (ease(0), ease(1));
            a += usize::from(first < self.a);
            b += usize::from(if rng.random_bool(self.together) { first } else { second } < self.b);
        }
        (a as f64 / self.fields as f64, b as f64 / self.fields as f64)
    }

    fn rng(&self, seed: u64) -> Pcg64Mcg {
        Pcg64Mcg::seed_from_u64(seed ^ (self.n as u64) << 20)
    }
}

/// A standard normal number (Box and Muller).
fn normal(rng: &mut Pcg64Mcg) -> f64 {
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

fn share(count: usize) -> f64 {
    count as f64 / RUNS as f64
}

/// Worlds whose intervals must hold the truth in 93 to 97 of 100.
const COVERED: &[World] = &[
    World { name: "near 1", n: 100, a: 0.93, b: 0.96, ..PLAIN },
    World { name: "near 1, more", n: 200, a: 0.96, b: 0.98, ..PLAIN },
    World { name: "few examples", n: 30, a: 0.5, b: 0.7, ..PLAIN },
    World { name: "few, far apart", n: 40, a: 0.3, b: 0.9, ..PLAIN },
    World { name: "equal arms", n: 150, a: 0.85, b: 0.85, ..PLAIN },
    World { name: "mostly ties", n: 300, a: 0.9, b: 0.91, together: 0.9, ..PLAIN },
    World { name: "many", n: 1000, a: 0.7, b: 0.72, ..PLAIN },
    World { name: "graded, few", n: 30, a: 0.5, b: 0.7, fields: 6, ..PLAIN },
    World { name: "graded, near 1", n: 60, a: 0.95, b: 0.97, fields: 6, ..PLAIN },
    World { name: "graded, ties", n: 200, a: 0.97, b: 0.98, together: 0.9, fields: 6, ..PLAIN },
    World { name: "clusters", n: 30, a: 0.6, b: 0.7, mean_cluster: 5.0, shared: 0.5, ..PLAIN },
    World {
        name: "clusters, near 1",
        n: 60,
        a: 0.92,
        b: 0.95,
        mean_cluster: 4.0,
        shared: 0.3,
        ..PLAIN
    },
    World {
        name: "small clusters",
        n: 100,
        a: 0.8,
        b: 0.85,
        mean_cluster: 2.0,
        shared: 0.3,
        ..PLAIN
    },
    World {
        name: "graded clusters",
        n: 40,
        a: 0.7,
        b: 0.75,
        fields: 6,
        mean_cluster: 4.0,
        shared: 0.3,
        ..PLAIN
    },
];

/// Worlds with so few outcomes that no interval can come near 95 %: they must err to the safe side.
const SAFE: &[World] = &[
    World { name: "hardly a difference", n: 50, a: 0.98, b: 0.99, ..PLAIN },
    World { name: "ten examples", n: 10, a: 0.8, b: 0.9, ..PLAIN },
    World { name: "graded, hardly moved", n: 15, a: 0.97, b: 0.98, fields: 6, ..PLAIN },
    World { name: "eight clusters", n: 8, a: 0.6, b: 0.7, mean_cluster: 5.0, shared: 0.3, ..PLAIN },
];

fn paired_coverage(world: &World) -> (f64, f64) {
    let mut rng = world.rng(1);
    let (mut covered, mut width) = (0, 0.0);
    for _ in 0..RUNS {
        let drawn = world.draw(&mut rng);
        let found = paired_interval(&drawn.a, &drawn.b, &drawn.clusters, 0.95).unwrap();
        covered += usize::from(found.contains(world.b - world.a));
        width += (found.hi - found.lo) / RUNS as f64;
    }
    (share(covered), width)
}

#[test]
fn intervals_of_differences_hold_the_truth() {
    println!("| world | n | a | b | coverage | mean width |\n|---|---|---|---|---|---|");
    let mut wrong = Vec::new();
    for (worlds, most) in [(COVERED, 0.97), (SAFE, 1.0)] {
        for world in worlds {
            let (coverage, width) = paired_coverage(world);
            let World { name, n, a, b, .. } = world;
            println!("| {name} | {n} | {a} | {b} | {:.1} % | {width:.3} |", coverage * 100.0);
            if !(0.93..=most).contains(&coverage) {
                wrong.push((name, coverage));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn intervals_of_scores_hold_the_truth() {
    println!("| world | n | truth | coverage |\n|---|---|---|---|");
    let mut wrong = Vec::new();
    for world in [
        World { name: "share", n: 100, b: 0.8, ..PLAIN },
        World { name: "share near 1", n: 100, b: 0.95, ..PLAIN },
        World { name: "share nearer 1", n: 300, b: 0.98, ..PLAIN },
        World { name: "few", n: 30, b: 0.7, ..PLAIN },
        World { name: "graded", n: 40, b: 0.9, fields: 6, ..PLAIN },
        World { name: "clusters", n: 40, b: 0.8, mean_cluster: 4.0, shared: 0.4, ..PLAIN },
        World { name: "clusters near 1", n: 80, b: 0.93, mean_cluster: 3.0, shared: 0.3, ..PLAIN },
        World {
            name: "graded clusters",
            n: 80,
            b: 0.8,
            fields: 6,
            mean_cluster: 4.0,
            shared: 0.3,
            ..PLAIN
        },
        World {
            name: "few graded clusters",
            n: 40,
            b: 0.8,
            fields: 6,
            mean_cluster: 4.0,
            shared: 0.3,
            ..PLAIN
        },
    ] {
        let mut rng = world.rng(2);
        let covered = (0..RUNS).filter(|_| {
            let Drawn { b, clusters, .. } = world.draw(&mut rng);
            let found = mean_interval_in(&b, world.fields == 1, &clusters).unwrap();
            found.contains(world.b)
        });
        let coverage = share(covered.count());
        let World { name, n, b, .. } = world;
        println!("| {name} | {n} | {b} | {:.1} % |", coverage * 100.0);
        if !(0.93..=0.97).contains(&coverage) {
            wrong.push((name, coverage));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A family on one test set: `better` candidates that are far better than asked, and `candidates` that are
/// exactly as much better as asked, looked at `looks` times while the test set grows to `n`.
#[derive(Clone, Copy)]
struct FamilyWorld {
    n: usize,
    candidates: usize,
    better: usize,
    looks: usize,
    gain: f64,
}

/// How often one of those that are only as good as asked is called better by more than `gain`.
fn false_claims(family: FamilyWorld, protect: bool) -> f64 {
    let FamilyWorld { n, candidates, better, looks, gain } = family;
    let world = World { n, a: 0.85, b: 0.85 + gain, ..PLAIN };
    let mut rng = world.rng(3 + candidates as u64);
    let shares: Vec<f64> = (1..=looks).map(|k| k as f64 / looks as f64).collect();
    // One flip: the exact test decides on zeros and ones.
    let options = PairedOptions { resamples: 1, seed: 0, ..PairedOptions::default() };
    let wrong = (0..RUNS).filter(|_| {
        // All candidates answer the same examples as the base: what they claim hangs together.
        let eases: Vec<f64> = (0..n).map(|_| rng.random()).collect();
        let a: Vec<f64> = eases.iter().map(|&e| f64::from(e < world.a)).collect();
        let of = |rng: &mut Pcg64Mcg, share: f64| -> Vec<f64> {
            let answer = |&ease: &f64| match rng.random_bool(world.together) {
                true => f64::from(ease < share),
                false => f64::from(rng.random::<f64>() < share),
            };
            eases.iter().map(answer).collect()
        };
        let share = |place: usize| if place < candidates { world.b } else { world.b + 0.1 };
        let answers: Vec<Vec<f64>> =
            (0..candidates + better).map(|place| of(&mut rng, share(place))).collect();
        (0..looks).any(|look| {
            let seen = (n as f64 * shares[look]).round() as usize;
            let all: Vec<&[f64]> = answers.iter().map(|b| &b[..seen]).collect();
            let claims = |paired: &eval::stats::PairedDifference| paired.exceeds(gain);
            if protect {
                let found =
                    paired_family(&a[..seen], &all, &[], gain, &shares[..=look], &options).unwrap();
                found[..candidates].iter().any(|member| claims(&member.paired))
            } else {
                let one = |b: &&[f64]| claims(&paired_difference(&a[..seen], b, &options).unwrap());
                all[..candidates].iter().any(one)
            }
        })
    });
    share(wrong.count())
}

/// A claim is false in at most 5 % of worlds without a difference beyond the line, however many candidates
/// and looks, and whoever else is better.
#[test]
fn nothing_is_worth_it_too_often() {
    println!(
        "| n | candidates | beside better ones | looks | gain asked | unprotected | protected |\n|---|---|---|---|---|---|---|"
    );
    let mut wrong = Vec::new();
    for (n, candidates, better, looks, gain) in [
        (50, 1, 0, 1, 0.0),
        (200, 1, 0, 1, 0.0),
        (200, 1, 0, 1, -0.05),
        (200, 1, 0, 1, 0.05),
        (300, 1, 0, 5, 0.0),
        (200, 10, 0, 1, 0.0),
        (200, 5, 5, 1, 0.0),
        (300, 10, 0, 5, 0.0),
        (300, 10, 0, 5, -0.05),
    ] {
        let family = FamilyWorld { n, candidates, better, looks, gain };
        let (free, kept) = (false_claims(family, false), false_claims(family, true));
        println!(
            "| {n} | {candidates} | {better} | {looks} | {gain} | {:.1} % | {:.1} % |",
            free * 100.0,
            kept * 100.0
        );
        if kept > 0.05 {
            wrong.push((n, candidates, better, looks, gain, kept));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    let levels = spent(&[0.2, 0.4, 0.6, 0.8, 1.0], 0.05).unwrap();
    println!("levels of five looks: {levels:.5?}");
}

/// How often a test set of `n` examples (clusters, where the world has them) proves that the difference
/// exceeds `line`.
fn power(world: &World, n: usize, line: f64) -> f64 {
    let world = World { n, ..*world };
    let mut rng = world.rng(4);
    let proven = (0..RUNS).filter(|_| {
        let drawn = world.draw(&mut rng);
        paired_interval(&drawn.a, &drawn.b, &drawn.clusters, 0.95).unwrap().lo > line
    });
    share(proven.count())
}

/// The forecast from pilots is right within 20 %: a fifth more examples than the middle forecast prove it
/// with more than the planned 80 %, a fifth fewer with less.
#[test]
fn the_forecast_number_of_examples_is_right() {
    println!(
        "| world | line | pilot | forecast | 80 % power at 1/1.2 | at 1 | at 1.2 |\n|---|---|---|---|---|---|---|"
    );
    let mut wrong = Vec::new();
    for (world, line) in [
        (World { name: "gain", n: 200, a: 0.7, b: 0.78, ..PLAIN }, 0.0),
        (World { name: "not worse", n: 200, a: 0.85, b: 0.85, ..PLAIN }, -0.05),
        (World { name: "graded", n: 200, a: 0.8, b: 0.83, fields: 6, ..PLAIN }, 0.0),
        (
            World {
                name: "clusters",
                n: 60,
                a: 0.7,
                b: 0.8,
                mean_cluster: 4.0,
                shared: 0.3,
                ..PLAIN
            },
            0.0,
        ),
    ] {
        let mut rng = world.rng(5);
        let mut sizes = Vec::new();
        let mut forecasts: Vec<f64> = (0..101)
            .map(|_| {
                let drawn = world.draw(&mut rng);
                sizes.push(drawn.a.len() as f64);
                let options = PairedOptions { resamples: 1, ..PairedOptions::default() };
                let seen = paired_difference_in(&drawn.a, &drawn.b, &drawn.clusters, &options);
                Pilot::of(&seen.unwrap()).needed(line, world.b - world.a, 0.95).unwrap() as f64
            })
            .collect();
        forecasts.sort_by(f64::total_cmp);
        let middle = forecasts[50];
        // Examples become clusters where the world is drawn by them.
        let per_unit = sizes.iter().sum::<f64>() / (sizes.len() * world.n) as f64;
        let at = |factor: f64| power(&world, (middle * factor / per_unit).round() as usize, line);
        let (fewer, same, more) = (at(1.0 / 1.2), at(1.0), at(1.2));
        let (name, n) = (world.name, world.n);
        println!(
            "| {name} | {line} | {n} | {middle} | {:.1} % | {:.1} % | {:.1} % |",
            fewer * 100.0,
            same * 100.0,
            more * 100.0
        );
        if !(fewer < 0.8 && more > 0.8) {
            wrong.push((name, fewer, more));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
