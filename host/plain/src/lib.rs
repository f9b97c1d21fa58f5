//! Text of strangers, made harmless for terminals and pages.
//!
//! A pack's model ids, file names and findings are written by whoever signed it. Shown as they are, an escape sequence could
//! repaint the terminal, and a direction override could make FAIL read as something else. Everything that packhost prints
//! passes through here; [`Unseen`](is_unseen) characters become visible, as JSON spells them (`\u001b`), so that the same
//! rule serves lines for people and JSON, whose meaning it does not change.

#![cfg_attr(
    test,
    allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may panic")
)]

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character shows nothing itself but changes what is shown: control characters, direction marks and overrides,
/// characters without width, line and paragraph separators, and tags.
pub fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}'
            | '\u{e0000}'..='\u{e007f}')
}

/// A text of several lines: line ends and tabs stay, everything else that is unseen becomes visible.
pub fn text(text: &str) -> Cow<'_, str> {
    spelled(text, |c| is_unseen(c) && !matches!(c, '\n' | '\t'))
}

/// A text that must stay on one line.
pub fn line(text: &str) -> Cow<'_, str> {
    spelled(text, is_unseen)
}

fn spelled(text: &str, hide: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&hide) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hide(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_become_visible() {
        assert_eq!(
            line("a\u{1b}[31mb\u{9b}c\n"),
            "a\\u001b[31mb\\u009bc\\u000a"
        );
        assert_eq!(text("a\tb\r\nc\u{202e}d"), "a\tb\\u000d\nc\\u202ed");
        assert_eq!(
            line("\u{200b}\u{feff}\u{e0041}"),
            "\\u200b\\ufeff\\udb40\\udc41"
        );
    }

    #[test]
    fn words_of_every_language_stay() {
        let words = "naïve \"PASS\" <b> \u{5d0}\u{5d1} \u{4e2d}\u{6587} \u{1f600}";
        assert!(matches!(line(words), Cow::Borrowed(_)));
        assert_eq!(line(words), words);
    }
}
