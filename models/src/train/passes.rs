//! Forward and backward passes of the batches of one step, several at the same time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use candle_core::backprop::GradStore;
use candle_core::{Error, Result};

use super::{StepLoss, Trainable};

/// Computes `parts` batches of a step on up to `workers` threads, and gives losses and gradients to `take` in the order of the
/// parts, so that their sum has the same bits however many worked on it.
///
/// Each thread takes the next part when it is done with its own: batches may differ much in what they cost, as sound alone does
/// from lips. Unlike threads that share every product, they wait for each other once a step only.
pub(super) fn passes<T: Trainable>(
    model: &T,
    step: u64,
    parts: usize,
    workers: usize,
    take: &mut dyn FnMut(StepLoss, GradStore) -> Result<()>,
) -> Result<()> {
    let pass = |part: usize| -> Result<(StepLoss, GradStore)> {
        let loss = model.loss(&model.batch(step, part)?)?;
        // The loss is read later; its graph, with every activation, is not needed any more.
        let gradients = loss.total.backward()?;
        Ok((StepLoss { total: loss.total.detach(), ..loss }, gradients))
    };
    let workers = workers.min(parts);
    if workers <= 1 {
        return (0..parts).try_for_each(|part| pass(part).and_then(|(loss, gradients)| take(loss, gradients)));
    }
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (send, done) = mpsc::channel();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                let (send, next, failed, pass) = (send.clone(), &next, &failed, &pass);
                scope.spawn(move || {
                    while !failed.load(Ordering::Relaxed) {
                        let part = next.fetch_add(1, Ordering::Relaxed);
                        if part >= parts || send.send((part, pass(part))).is_err() {
                            break;
                        }
                    }
                })
            })
            .collect();
        drop(send);
        let (mut early, mut taken) = (BTreeMap::new(), 0);
        let outcome: Result<()> = done.iter().try_for_each(|(part, result)| {
            early.insert(part, result?);
            while let Some((loss, gradients)) = early.remove(&taken) {
                take(loss, gradients)?;
                taken += 1;
            }
            Ok(())
        });
        failed.store(outcome.is_err(), Ordering::Relaxed);
        let panicked = threads.into_iter().map(|thread| thread.join().is_err()).fold(false, |a, b| a | b);
        outcome?;
        match panicked {
            true => Err(Error::Msg("a training thread panicked; please report this as a bug".into())),
            false => Ok(()),
        }
    })
}
