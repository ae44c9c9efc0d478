//! A table in parts. Whoever has a copy keeps it as it was while another one changes: a copy costs nothing but a count, and
//! a change copies one part and the way to it, however large the table is.

use std::sync::Arc;

const ROWS: usize = 8;
const COLUMNS: usize = 8;

type Row<T> = [Arc<T>; COLUMNS];

/// See the [module](self).
#[derive(Clone)]
pub(crate) struct Parts<T>(Arc<[Arc<Row<T>>; ROWS]>);

impl<T: Default> Default for Parts<T> {
    /// All parts are empty.
    fn default() -> Self {
        let empty = Arc::<T>::default();
        let row = Arc::new(std::array::from_fn(|_| Arc::clone(&empty)));
        Self(Arc::new(std::array::from_fn(|_| Arc::clone(&row))))
    }
}

impl<T> Parts<T> {
    /// The part of what is numbered or hashed so; there is one for each number.
    pub fn get(&self, number: u64) -> Option<&T> {
        let (row, column) = place(number);
        self.0.get(row)?.get(column).map(Arc::as_ref)
    }

    /// All parts.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|row| row.iter()).map(Arc::as_ref)
    }
}

impl<T: Clone> Parts<T> {
    /// The same part, to be changed.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let (row, column) = place(number);
        let row = Arc::make_mut(&mut self.0).get_mut(row)?;
        Arc::make_mut(row).get_mut(column).map(Arc::make_mut)
    }
}

fn place(number: u64) -> (usize, usize) {
    let of = |number: u64, count: usize| usize::try_from(number % count as u64).unwrap_or(0);
    (of(number / COLUMNS as u64, ROWS), of(number, COLUMNS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_where_it_was_made_and_in_no_copy() {
        let mut parts = Parts::<Vec<u64>>::default();
        for number in 0..200 {
            let before = parts.clone();
            parts.get_mut(number).unwrap().push(number);
            assert_eq!(parts.get(number).unwrap().last(), Some(&number));
            assert_ne!(before.get(number), parts.get(number));
            assert_eq!(
                (before.iter().flatten().count() as u64, parts.iter().flatten().count() as u64),
                (number, number + 1)
            );
        }
        // As evenly as can be.
        assert_eq!(parts.iter().map(Vec::len).max(), Some(4));
        assert_eq!(parts.iter().count(), ROWS * COLUMNS);
    }
}
