//! What may be a name.
//!
//! Owns: the rules for names that users choose and that end up in file names, metrics and URLs. Never: what is named.

use crate::error::BrokerError;

const TOPIC_NAME_BYTES_MAX: usize = 249;

/// What a name with any other character is told.
pub(super) const LEGAL: &str = "only letters, digits, '.', '_' and '-' are allowed";

/// Whether a name of a topic, a service or an instance may have it.
pub(super) fn is_legal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

/// Letters, digits, '.', '_' and '-', at most 249 of them, and not a name that means a directory.
pub(crate) fn check_topic_name(name: &str) -> Result<(), BrokerError> {
    let why = if name.is_empty() {
        "a topic needs a name".to_owned()
    } else if name.len() > TOPIC_NAME_BYTES_MAX {
        format!("{} bytes are more than the {TOPIC_NAME_BYTES_MAX} allowed", name.len())
    } else if name == "." || name == ".." {
        "'.' and '..' are not names".to_owned()
    } else if !name.bytes().all(is_legal) {
        LEGAL.to_owned()
    } else {
        return Ok(());
    };
    Err(BrokerError::InvalidArgument { field: format!("topic name '{name}'"), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names_are_safe_in_paths_and_metrics() {
        for good in ["orders", "a.b_c-D9", "__internal", "...", &"x".repeat(249)] {
            assert!(check_topic_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a\0", "ä", &"x".repeat(250)] {
            assert_eq!(check_topic_name(bad).unwrap_err().reason(), "INVALID_ARGUMENT", "{bad}");
        }
    }
}
