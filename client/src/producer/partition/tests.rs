//! Rules of sequence and order, one by one.
