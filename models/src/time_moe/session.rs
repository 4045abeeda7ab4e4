//! A series that grows while it is forecast: what was computed of its past is kept, and new values cost a pass over themselves alone.
//!
//! The keys and values in the cache are those of values standardised in one way, so the mean and deviation stay what they were when the
//! session was begun or last renewed. It is renewed, by one pass over all of its values, when their mean has moved by more than a
//! quarter of the deviation or the deviation has grown or shrunk by a quarter, and when there are more than the limit: then it
//! goes on with the newest three quarters of that, so that in the long run renewals cost three values for each new one at most.
//! The reference has no such thing.

use candle_core::{IndexOp, Result, Tensor, bail};

use super::{Cache, Context, Normalisation, TimeMoe};

/// Share of the deviation that the mean may move by, and that the deviation may change by, before a session is renewed.
const DRIFT: f64 = 0.25;

/// Where a growing series stands. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Session {
    norm: Normalisation,
    /// Those in the cache.
    values: Vec<f32>,
    cache: Cache,
    /// The hidden state of the last of them, `[1, h]`.
    last: Tensor,
    limit: usize,
}

impl Session {
    /// The values that a forecast rests on, oldest first.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// How they are standardised.
    pub fn normalisation(&self) -> Normalisation {
        self.norm
    }
}

impl TimeMoe {
    /// Begins a session with the newest `limit` values of a history.
    ///
    /// # Errors
    /// No value, one that is not finite, or a limit of 0.
    pub fn session(&self, history: &[f32], limit: usize) -> Result<Session> {
        if history.is_empty() || limit == 0 {
            bail!("a session of {} values that may keep {limit}: both must be at least 1", history.len());
        }
        finite(history)?;
        let values = &history[history.len().saturating_sub(limit)..];
        let norm = Normalisation::of(values);
        let mut cache = Cache::default();
        let last = self.take_in(&norm, values, &mut cache)?;
        Ok(Session { norm, values: values.to_vec(), cache, last, limit })
    }

    /// Takes new values into a session, in the order of time. The answer is the number of values that went through the model:
    /// as many as are new, or more where the session was renewed. After an error the session is what it was.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn observe(&self, session: &mut Session, new: &[f32]) -> Result<usize> {
        finite(new)?;
        if new.is_empty() {
            return Ok(0);
        }
        let mut values = [&session.values[..], new].concat();
        let full = values.len() > session.limit;
        if full {
            let kept = session.limit - session.limit / 4;
            values.drain(..values.len() - kept.min(values.len()));
        }
        let (now, then) = (Normalisation::of(&values), session.norm);
        let moved = (now.mean - then.mean).abs() > DRIFT * then.std;
        let spread = now.std > (1.0 + DRIFT) * then.std || now.std < (1.0 - DRIFT) * then.std;
        if full || moved || spread {
            *session = self.session(&values, session.limit)?;
            return Ok(values.len());
        }
        let mut cache = session.cache.clone();
        session.last = self.take_in(&then, new, &mut cache)?;
        (session.cache, session.values) = (cache, values);
        Ok(new.len())
    }

    /// Continues the values of a session by `horizon` values. The session stays where it is.
    ///
    /// # Errors
    /// A horizon of 0.
    pub fn forecast_session(&self, session: &Session, horizon: usize) -> Result<Vec<f32>> {
        if horizon == 0 {
            bail!("a horizon of 0 asks for nothing");
        }
        let rows = self.roll_out(session.cache.clone(), session.last.clone(), Context::default(), horizon)?;
        let row = rows.i(0)?.to_vec1::<f32>()?;
        Ok(row.iter().map(|&v| session.norm.invert(v)).collect())
    }

    /// Sends values after those of the cache; the hidden state of the last, `[1, h]`.
    fn take_in(&self, norm: &Normalisation, values: &[f32], cache: &mut Cache) -> Result<Tensor> {
        let normed: Vec<f32> = values.iter().map(|&v| norm.apply(v)).collect();
        let x = Tensor::from_vec(normed, (1, values.len()), &self.device)?;
        let hidden = self.forward(&x, &Context::default(), Some(cache), None)?.hidden; // (1, t, h)
        hidden.i((.., values.len() - 1, ..))?.contiguous() // (1, h)
    }
}

fn finite(values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => bail!("the series has {} at index {at}; fill or drop values that are not finite", values[at]),
        None => Ok(()),
    }
}
