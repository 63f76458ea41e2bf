//! How far ahead directories are fetched when somebody walks through a tree.

use std::time::Duration;

use tokio::time::Instant;

/// What comes so soon after a fetch belongs to the same walk.
const STRIDE: Duration = Duration::from_millis(100);
/// How many directories are asked for ahead first.
const FIRST: usize = 4;

/// How somebody walks through directories that are not here yet. One `stat` deep down fetches each directory on
/// its way and little more; `find` soon fetches as many at a time as fit into an answer.
#[derive(Debug, Default)]
pub(super) struct Walk {
    ended: Option<Instant>,
    width: usize,
}

impl Walk {
    /// A directory is fetched now: how many others are worth asking for with it.
    pub(super) fn begin(&mut self) -> usize {
        let goes_on = self.ended.is_some_and(|ended| ended.elapsed() < STRIDE);
        self.width = if goes_on { (self.width * 2).clamp(FIRST, meta::ALSO_MAX) } else { 0 };
        self.width
    }

    /// It is here.
    pub(super) fn end(&mut self) {
        self.ended = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longer_a_walk_the_more_is_asked_for_until_it_pauses() {
        let mut walk = Walk::default();
        let mut widths = Vec::new();
        for pause in [0, 1, 1, 1, 1, 1, 1, 200, 1] {
            tokio::time::advance(Duration::from_millis(pause)).await;
            widths.push(walk.begin());
            walk.end();
        }
        assert_eq!(widths, [0, 4, 8, 16, 32, 64, 64, 0, 4]);
    }
}
