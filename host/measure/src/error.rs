//! What can go wrong while measuring. Every message names the file, window, guard or key and says what to do.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why nothing could be measured, or why a table, policy or preset was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("{path}: cannot be read: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line of a data set is not what the provider expects.
    #[error("{path}: line {line}: {reason}", path = path.display())]
    BadLine {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A data set holds no text at all.
    #[error("{path}: the data set is empty: {lines} lines, none with text; give a file with at least as many texts as windows are asked for", path = path.display())]
    EmptyDataset {
        /// Which file.
        path: PathBuf,
        /// Lines that were read.
        lines: usize,
    },
    /// Fewer windows can be drawn than were asked for.
    #[error(
        "too few windows: {preview} preview and {final_} final were asked for, but of {texts} texts only {usable} can be used ({short} are shorter than two tokens, {duplicates} repeat another); ask for fewer windows or give more text"
    )]
    TooFewWindows {
        /// Preview windows asked for.
        preview: usize,
        /// Final windows asked for.
        final_: usize,
        /// Texts in the data set.
        texts: usize,
        /// Texts that make a window.
        usable: usize,
        /// Texts of fewer than two tokens.
        short: usize,
        /// Texts whose tokens equal another's.
        duplicates: usize,
    },
    /// Removing duplicates left fewer windows than the profile allows.
    #[error(
        "too few distinct windows: {requested} per arm were asked for; without repeated texts {left} would be left, below the floor of {floor} of profile {profile}; give text that repeats less"
    )]
    BelowWindowFloor {
        /// Windows per arm asked for.
        requested: usize,
        /// Windows per arm that the reduction reached.
        left: usize,
        /// The least allowed.
        floor: usize,
        /// The profile that sets the floor.
        profile: &'static str,
    },
    /// No text has two tokens, so nothing can be scored.
    #[error(
        "too few tokens: none of {texts} texts has two tokens within the window length of {seq_len}; a window needs at least two to have a loss"
    )]
    TooFewTokens {
        /// Texts in the data set.
        texts: usize,
        /// Tokens a window may hold.
        seq_len: usize,
    },
    /// Windows do not reach the tier's coverage in a profile that demands it.
    #[error(
        "too few windows for tier {tier} in profile {profile}: {what} {used}, required {required}; ask for more windows or replicates, or use profile dev"
    )]
    Coverage {
        /// Which count.
        what: &'static str,
        /// What there is.
        used: usize,
        /// What the tier demands.
        required: usize,
        /// The tier.
        tier: String,
        /// The profile.
        profile: &'static str,
    },
    /// The plan of the windows makes no sense.
    #[error("window plan: {0}")]
    WindowPlan(String),
    /// A text could not be tokenised.
    #[error("text {index} of the data set cannot be tokenised: {reason}")]
    Tokenise {
        /// Position in the data set, counted from 0.
        index: usize,
        /// Why.
        reason: String,
    },
    /// A measurement table is not in canonical form.
    #[error("measurement table: {0}")]
    Table(String),
    /// A guard asks for something that this host cannot measure.
    #[error("guard {guard} asks for quantity `{quantity}` of `{scope}`, {reason}")]
    Request {
        /// The guard.
        guard: String,
        /// What it wants.
        quantity: String,
        /// Of what.
        scope: String,
        /// Why it cannot be had.
        reason: String,
    },
    /// A tier, profile or policy override is wrong.
    #[error("policy: {0}")]
    Policy(String),
    /// A preset is wrong.
    #[error("preset: {0}")]
    Preset(String),
    /// A report cannot be put together.
    #[error("report: {0}")]
    Report(String),
    /// The model could not be read or run.
    #[error(transparent)]
    Model(#[from] packhost_model::Error),
    /// The measurement was cancelled.
    #[error("measurement cancelled")]
    Cancelled,
}
