//! The data of options, parsed.

/// The data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) name: String,
    pub(super) infos: Vec<u16>,
}

impl Wish {
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        let (name, rest) = text(data)?;
        let (count, infos) = rest.split_first_chunk::<2>()?;
        let count = u16::from_be_bytes(*count) as usize;
        if infos.len() != 2 * count {
            return None;
        }
        let infos = infos.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        Some(Self { name, infos: infos.collect() })
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contexts {
    pub(super) name: String,
    pub(super) queries: Vec<String>,
}

impl Contexts {
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        let (name, rest) = text(data)?;
        let (count, mut rest) = rest.split_first_chunk::<4>()?;
        let mut queries = Vec::new();
        for _ in 0..u32::from_be_bytes(*count) {
            let (query, more) = text(rest)?;
            queries.push(query);
            rest = more;
        }
        rest.is_empty().then_some(Self { name, queries })
    }
}

/// A length of 32 bits, as many bytes of UTF-8, and the rest.
fn text(data: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    let (text, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    Some((std::str::from_utf8(text).ok()?.to_owned(), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(text: &str, out: &mut Vec<u8>) {
        out.extend((text.len() as u32).to_be_bytes());
        out.extend(text.as_bytes());
    }

    #[test]
    fn a_wish_is_a_name_and_infos() {
        let mut data = Vec::new();
        put("vol", &mut data);
        data.extend(2u16.to_be_bytes());
        data.extend([0, 3, 0, 1]);
        let expected = Wish { name: "vol".to_owned(), infos: vec![3, 1] };
        assert_eq!(Wish::parse(&data), Some(expected));
        data.pop();
        assert_eq!(Wish::parse(&data), None, "cut short");
    }

    #[test]
    fn contexts_are_a_name_and_queries() {
        let mut data = Vec::new();
        put("vol", &mut data);
        data.extend(2u32.to_be_bytes());
        put("base:", &mut data);
        put("", &mut data);
        let queries = vec!["base:".to_owned(), String::new()];
        assert_eq!(Contexts::parse(&data), Some(Contexts { name: "vol".to_owned(), queries }));
        data.push(0);
        assert_eq!(Contexts::parse(&data), None, "something behind the last");
    }

    proptest! {
        #[test]
        fn any_option_parses_or_is_refused(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(wish) = Wish::parse(&data) {
                prop_assert_eq!(data.len(), 6 + wish.name.len() + 2 * wish.infos.len());
            }
            if let Some(contexts) = Contexts::parse(&data) {
                let queries: usize = contexts.queries.iter().map(|query| 4 + query.len()).sum();
                prop_assert_eq!(data.len(), 8 + contexts.name.len() + queries);
            }
        }
    }
}
