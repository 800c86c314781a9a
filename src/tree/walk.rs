//! Walks a tree depth first, as a NAR lays it out, in constant memory.

use std::ops::Range;

/// What the walk comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// An entry, before its children, at this depth (the root's is 0).
    Enter(u32, u32),
    /// A directory, after its children.
    Leave(u32),
}

/// What a walk needs to know of an entry.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub parent: u32,
    /// `None` if it is no directory.
    pub children: Option<Range<u32>>,
}

/// Steps through entries numbered as in [`super::format`], where a parent's number is below its
/// children's: without that the walk may not end.
pub(super) struct Walk<F> {
    place: F,
    depth: u32,
    next: Option<Step>,
}

impl<F: Fn(u32) -> Place> Walk<F> {
    pub fn new(place: F) -> Self {
        Self {
            place,
            depth: 0,
            next: Some(Step::Enter(0, 0)),
        }
    }

    /// What comes after the entry is done with: its next sibling, or its parent's end.
    fn after(&mut self, entry: u32) -> Option<Step> {
        if entry == 0 {
            return None;
        }
        let parent = (self.place)(entry).parent;
        let siblings = (self.place)(parent).children.unwrap_or_default();
        let sibling = entry.saturating_add(1);
        if siblings.contains(&sibling) {
            return Some(Step::Enter(sibling, self.depth));
        }
        self.depth = self.depth.saturating_sub(1);
        Some(Step::Leave(parent))
    }
}

impl<F: Fn(u32) -> Place> Iterator for Walk<F> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let step = self.next?;
        self.next = match step {
            Step::Enter(entry, _) => match (self.place)(entry).children {
                Some(children) if children.is_empty() => Some(Step::Leave(entry)),
                Some(children) => {
                    self.depth += 1;
                    Some(Step::Enter(children.start, self.depth))
                }
                None => self.after(entry),
            },
            Step::Leave(entry) => self.after(entry),
        };
        Some(step)
    }
}
