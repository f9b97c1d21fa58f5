//! Writing a subject to disk as an ordinary checkpoint.
