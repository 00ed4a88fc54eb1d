//! CPython's `random.Random` of a whole-number seed, so that the same few-shot examples are drawn as in
//! lm-evaluation-harness, and the same resamples.

const N: usize = 624;
const M: usize = 397;

/// The Mersenne Twister MT19937 (M. Matsumoto, T. Nishimura 1998, doi 10.1145/272991.272995) seeded as
/// CPython does, with what its `random` module makes of it.
pub(super) struct PythonRandom {
    state: [u32; N],
    next: usize,
}

impl PythonRandom {
    /// `random.Random(seed)`.
    pub(super) fn new(seed: u32) -> PythonRandom {
        let mut random = PythonRandom { state: [0; N], next: N };
        random.seed_once(19_650_218);
        // init_by_array with the seed's only 32-bit digit as key.
        let state = &mut random.state;
        let (mut i, mix) = (1, |previous: u32| previous ^ (previous >> 30));
        for _ in 0..N {
            state[i] = (state[i] ^ mix(state[i - 1]).wrapping_mul(1_664_525)).wrapping_add(seed);
            i = wrap(state, i);
        }
        for _ in 1..N {
            state[i] =
                (state[i] ^ mix(state[i - 1]).wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i = wrap(state, i);
        }
        state[0] = 0x8000_0000;
        random
    }

    fn seed_once(&mut self, seed: u32) {
        self.state[0] = seed;
        for i in 1..N {
            let previous = self.state[i - 1];
            self.state[i] =
                (previous ^ (previous >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
    }

    /// 32 random bits.
    fn bits32(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `random()`: uniform in [0, 1), 53 bits.
    pub(super) fn uniform(&mut self) -> f64 {
        let (high, low) = (self.bits32() >> 5, self.bits32() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// One of the places that `choices(range(n), k=...)` draws: `floor(random() * n)`.
    pub(super) fn choice(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    /// `_randbelow(n)` for 0 < n < 2^32: bits are drawn until they are below n.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.bits32() >> (32 - bits)) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `sample(range(n), k)`: k different places in the order drawn. None when k > n.
    pub(super) fn sample(&mut self, n: usize, k: usize) -> Option<Vec<usize>> {
        if k > n {
            return None;
        }
        // CPython draws from a list of all that are left, or, where that would be long beside k, keeps a
        // set of what was drawn: the two consume different numbers.
        let mut set_size = 21;
        if k > 5 {
            set_size += 4_usize.pow((3.0 * k as f64).log(4.0).ceil() as u32);
        }
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            let draw = |i| {
                let place = self.below(n - i);
                let drawn = pool[place];
                pool[place] = pool[n - i - 1];
                drawn
            };
            return Some((0..k).map(draw).collect());
        }
        let mut drawn: Vec<usize> = Vec::with_capacity(k);
        while drawn.len() < k {
            let place = self.below(n);
            if !drawn.contains(&place) {
                drawn.push(place);
            }
        }
        Some(drawn)
    }
}

/// The place behind `i`; at the end the last number is carried to the front.
fn wrap(state: &mut [u32; N], i: usize) -> usize {
    if i + 1 < N {
        return i + 1;
    }
    state[0] = state[N - 1];
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    // random.Random(1234): [r.random() for _ in range(3)], then as below, on CPython 3.13.
    #[test]
    fn draws_are_those_of_cpython() {
        let golden: serde_json::Value = serde_json::from_str(
            &std::fs::read_to_string(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../testdata/lm_eval/python_random.json"
            ))
            .unwrap(),
        )
        .unwrap();
        for case in golden.as_array().unwrap() {
            let mut random = PythonRandom::new(case["seed"].as_u64().unwrap() as u32);
            for expected in case["random"].as_array().unwrap() {
                assert_eq!(random.uniform(), expected.as_f64().unwrap());
            }
            for sample in case["samples"].as_array().unwrap() {
                let (n, k) = (sample["n"].as_u64().unwrap(), sample["k"].as_u64().unwrap());
                let drawn = random.sample(n as usize, k as usize).unwrap();
                let drawn: Vec<u64> = drawn.iter().map(|&d| d as u64).collect();
                let expected: Vec<u64> = sample["drawn"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|d| d.as_u64().unwrap())
                    .collect();
                assert_eq!(drawn, expected, "sample(range({n}), {k})");
            }
            let choices = case["choices"].as_array().unwrap();
            for expected in choices {
                assert_eq!(random.choice(choices.len()) as u64, expected.as_u64().unwrap());
            }
        }
        assert_eq!(PythonRandom::new(1).sample(2, 3), None);
    }
}
