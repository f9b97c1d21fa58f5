//! Student's distribution, and the special functions that fitting variances needs.

/// Probability that a Student variable with `degrees` degrees of freedom exceeds `t`. Infinite degrees give the normal
/// distribution. NaN for NaN or for degrees that are not positive.
///
/// `P(|T| > |t|) = I_x(ν/2, 1/2)` with `x = ν/(ν + t²)` and `I` the regularised incomplete beta function (Abramowitz and
/// Stegun, 26.7.1 and 26.5.27). Relative accuracy about 1e-12, far into the tail.
#[must_use]
pub fn upper_tail(t: f64, degrees: f64) -> f64 {
    if t.is_nan() || degrees.is_nan() || degrees <= 0.0 {
        return f64::NAN;
    }
    // Beyond this many degrees the difference from the normal distribution is below the accuracy of the fraction.
    let both = if degrees > 1e9 {
        libm::erfc(t.abs() * std::f64::consts::FRAC_1_SQRT_2)
    } else {
        let square = t * t;
        if square.is_infinite() {
            0.0
        } else {
            // The two arguments are formed without cancellation.
            let whole = degrees + square;
            incomplete_beta(degrees / whole, square / whole, degrees / 2.0, 0.5)
        }
    };
    if t >= 0.0 {
        both / 2.0
    } else {
        1.0 - both / 2.0
    }
}

/// The regularised incomplete beta function at `x`, where `y` is `1 - x`.
fn incomplete_beta(x: f64, y: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if y <= 0.0 {
        return 1.0;
    }
    let log_front = libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b)
        + a * libm::log(x)
        + b * libm::log(y);
    let front = libm::exp(log_front);
    // The fraction converges fast on one side of the mean; the other side follows by symmetry.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * beta_fraction(x, a, b) / a
    } else {
        1.0 - front * beta_fraction(y, b, a) / b
    }
}

/// The continued fraction of the incomplete beta function (Abramowitz and Stegun, 26.5.8), by Lentz's method.
fn beta_fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / away(1.0 - (a + b) * x / (a + 1.0));
    let mut value = d;
    for step in 1..=500 {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / away(1.0 + even * d);
        c = away(1.0 + even / c);
        value *= c * d;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / away(1.0 + odd * d);
        c = away(1.0 + odd / c);
        let change = c * d;
        value *= change;
        if (change - 1.0).abs() < 1e-15 {
            break;
        }
    }
    value
}

/// The logarithmic derivative of the gamma function, for positive `x`: recurrence up to 10, then the asymptotic series
/// (Abramowitz and Stegun, 6.3.5 and 6.3.18).
#[must_use]
pub fn digamma(x: f64) -> f64 {
    let (mut x, mut sum) = (x, 0.0);
    while x < 10.0 {
        sum -= 1.0 / x;
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    let series =
        r * (1.0 / 12.0 - r * (1.0 / 120.0 - r * (1.0 / 252.0 - r * (1.0 / 240.0 - r / 132.0))));
    sum + libm::log(x) - 0.5 / x - series
}

/// The derivative of [`digamma`], for positive `x` (Abramowitz and Stegun, 6.4.6 and 6.4.12).
#[must_use]
pub fn trigamma(x: f64) -> f64 {
    let (mut x, mut sum) = (x, 0.0);
    while x < 10.0 {
        sum += 1.0 / (x * x);
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    let series =
        r * (1.0 / 6.0 - r * (1.0 / 30.0 - r * (1.0 / 42.0 - r * (1.0 / 30.0 - r * 5.0 / 66.0))));
    sum + (1.0 + 0.5 / x + series) / x
}

/// The positive `x` whose [`trigamma`] is `value`, by bisection in the logarithm between 1e-7 and 1e7; a value beyond
/// either end gives that end.
#[must_use]
pub fn trigamma_inverse(value: f64) -> f64 {
    let (mut low, mut high) = (libm::log(1e-7), libm::log(1e7));
    for _ in 0..80 {
        let middle = (low + high) / 2.0;
        if trigamma(libm::exp(middle)) > value {
            low = middle;
        } else {
            high = middle;
        }
    }
    libm::exp((low + high) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, expected: f64, relative: f64) {
        assert!(
            (got - expected).abs() <= relative * expected.abs(),
            "{got} is not {expected}"
        );
    }

    #[test]
    fn tails_by_closed_forms() {
        use std::f64::consts::PI;
        // One degree: 1/2 - atan(t)/π. Two: 1/2 - t/(2√(2+t²)). Four: (1 - s(3 - s²)/2)/2 with s = t/√(4+t²).
        for t in [0.1_f64, 0.7, 1.0, 2.5, 12.0, 300.0] {
            near(upper_tail(t, 1.0), libm::atan(1.0 / t) / PI, 1e-12);
            let s = t / (2.0 + t * t).sqrt();
            let tail = 1.0 / (2.0 + t * t) / (1.0 + s); // (1 - s)/2 without cancellation
            near(upper_tail(t, 2.0), tail, 1e-12);
            near(upper_tail(t, 2.0) + upper_tail(-t, 2.0), 1.0, 1e-15);
        }
        let s = 2.0 / 8.0_f64.sqrt();
        near(
            upper_tail(2.0, 4.0),
            (1.0 - s * (3.0 - s * s) / 2.0) / 2.0,
            1e-12,
        );
        // Many degrees: the normal distribution.
        near(upper_tail(1.959_963_984_540_054, 1e8), 0.025, 1e-6);
        near(
            upper_tail(1.959_963_984_540_054, f64::INFINITY),
            0.025,
            1e-14,
        );
        assert_eq!(upper_tail(0.0, 3.0), 0.5);
        assert_eq!(upper_tail(f64::INFINITY, 3.0), 0.0);
        assert!(upper_tail(f64::NAN, 3.0).is_nan() && upper_tail(1.0, 0.0).is_nan());
    }

    #[test]
    fn gammas_at_known_points() {
        use std::f64::consts::{LN_2, PI};
        const EULER: f64 = 0.577_215_664_901_532_9;
        near(digamma(1.0), -EULER, 1e-13);
        near(digamma(0.5), -EULER - 2.0 * LN_2, 1e-13);
        near(trigamma(1.0), PI * PI / 6.0, 1e-13);
        near(trigamma(0.5), PI * PI / 2.0, 1e-13);
        for x in [0.01, 0.3, 1.0, 2.0, 50.0, 1e4] {
            near(trigamma_inverse(trigamma(x)), x, 1e-9);
        }
    }
}
