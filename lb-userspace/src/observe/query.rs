//! The query part of a request's path.

/// The first value that `name` has, without percent signs. What is no UTF-8 or no percent code is taken as it stands.
pub(super) fn value(query: Option<&str>, name: &str) -> Option<String> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then(|| decoded(value))
    })
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let code = tail
            .get(..2)
            .and_then(|hex| str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => bytes.push(*first),
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_and_decoded() {
        let query = Some("limit=5&service=a%20b%2fc&to=%5b2001:db8::1%5d:80&x=100%&y=%zz");
        let found = |name| value(query, name);
        assert_eq!(found("limit").as_deref(), Some("5"));
        assert_eq!(found("service").as_deref(), Some("a b/c"));
        assert_eq!(found("to").as_deref(), Some("[2001:db8::1]:80"));
        assert_eq!(found("x").as_deref(), Some("100%"));
        assert_eq!(found("y").as_deref(), Some("%zz"));
        assert_eq!(found("z"), None);
        assert_eq!(value(None, "limit"), None);
    }
}
