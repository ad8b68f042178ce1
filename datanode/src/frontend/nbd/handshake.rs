//! The negotiation: from the greeting to an agreed export.

use std::io;

use sbk_engine::types::MAX_REQUEST_BYTES;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::exports::{self, Export};
use super::wire::*;
use crate::frontend::Frontends;

/// Most bytes of one option. The longest that makes sense is a name and a list of infos.
const MAX_OPTION: u32 = 8192;
/// Options after which a client is taken for hostile.
const MAX_OPTIONS: usize = 64;

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Agrees on an export. `None` if the client ended the negotiation in order. Takes as long as the
/// client takes: the caller sets the limit.
pub(super) async fn negotiate<R, W>(
    frontends: &Frontends,
    reader: &mut R,
    writer: &mut W,
) -> io::Result<Option<Export>>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut greeting = Vec::with_capacity(18);
    greeting.extend(NBDMAGIC.to_be_bytes());
    greeting.extend(IHAVEOPT.to_be_bytes());
    greeting.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    writer.write_all(&greeting).await?;
    let flags = reader.read_u32().await?;
    let known = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
    if flags & !known != 0 {
        return Err(broken("unknown client flags"));
    }
    let no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
    for _ in 0..MAX_OPTIONS {
        let magic = reader.read_u64().await?;
        if magic != IHAVEOPT {
            return Err(broken("an option without its magic number"));
        }
        let option = reader.read_u32().await?;
        let length = reader.read_u32().await?;
        if length > MAX_OPTION {
            // Draining it could take for ever.
            reply(writer, option, REP_ERR_TOO_BIG, b"the option is too long").await?;
            return Err(broken("an option over the limit"));
        }
        let mut data = vec![0; length as usize];
        reader.read_exact(&mut data).await?;
        match answer(frontends, writer, option, &data, no_zeroes).await? {
            Step::Next => {}
            Step::Over => return Ok(None),
            Step::Agreed(export) => return Ok(Some(export)),
        }
    }
    Err(broken("too many options"))
}

enum Step {
    Next,
    Over,
    Agreed(Export),
}

async fn answer<W: AsyncWrite + Unpin>(
    frontends: &Frontends,
    writer: &mut W,
    option: u32,
    data: &[u8],
    no_zeroes: bool,
) -> io::Result<Step> {
    let catalogue = frontends.catalogue().borrow().clone();
    match option {
        OPT_EXPORT_NAME => {
            let name = std::str::from_utf8(data).map_err(|_| broken("a name that is not UTF-8"))?;
            // This option has no error reply: closing is the answer.
            let export = exports::find(&catalogue, name).ok_or_else(|| broken("no such export"))?;
            let mut bytes = Vec::with_capacity(134);
            bytes.extend(export.bytes.to_be_bytes());
            bytes.extend(TRANSMISSION.to_be_bytes());
            if !no_zeroes {
                bytes.extend([0; 124]);
            }
            writer.write_all(&bytes).await?;
            Ok(Step::Agreed(export))
        }
        OPT_ABORT => {
            reply(writer, option, REP_ACK, b"").await?;
            Ok(Step::Over)
        }
        OPT_LIST => {
            if !data.is_empty() {
                reply(writer, option, REP_ERR_INVALID, b"LIST takes no data").await?;
                return Ok(Step::Next);
            }
            for name in exports::names(&catalogue) {
                let mut bytes = Vec::with_capacity(4 + name.len());
                bytes.extend((name.len() as u32).to_be_bytes());
                bytes.extend(name.as_bytes());
                reply(writer, option, REP_SERVER, &bytes).await?;
            }
            reply(writer, option, REP_ACK, b"").await?;
            Ok(Step::Next)
        }
        OPT_INFO | OPT_GO => {
            let Some(wish) = Wish::parse(data) else {
                reply(writer, option, REP_ERR_INVALID, b"malformed INFO or GO").await?;
                return Ok(Step::Next);
            };
            let Some(export) = exports::find(&catalogue, &wish.name) else {
                let text = match catalogue.heard {
                    true => format!("there is no volume '{}'", wish.name),
                    false => {
                        "this datanode has not heard from the masters yet; try again".to_owned()
                    }
                };
                reply(writer, option, REP_ERR_UNKNOWN, text.as_bytes()).await?;
                return Ok(Step::Next);
            };
            describe(writer, option, &export, &wish).await?;
            reply(writer, option, REP_ACK, b"").await?;
            Ok(if option == OPT_GO { Step::Agreed(export) } else { Step::Next })
        }
        _ => {
            reply(writer, option, REP_ERR_UNSUP, b"").await?;
            Ok(Step::Next)
        }
    }
}

/// The data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    name: String,
    infos: Vec<u16>,
}

impl Wish {
    fn parse(data: &[u8]) -> Option<Self> {
        let (length, rest) = data.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let name = std::str::from_utf8(rest.get(..length)?).ok()?.to_owned();
        let (count, infos) = rest.get(length..)?.split_first_chunk::<2>()?;
        let count = u16::from_be_bytes(*count) as usize;
        if infos.len() != 2 * count {
            return None;
        }
        let infos = infos.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        Some(Self { name, infos: infos.collect() })
    }
}

async fn describe<W: AsyncWrite + Unpin>(
    writer: &mut W,
    option: u32,
    export: &Export,
    wish: &Wish,
) -> io::Result<()> {
    let mut info = Vec::with_capacity(14);
    info.extend(INFO_EXPORT.to_be_bytes());
    info.extend(export.bytes.to_be_bytes());
    info.extend(TRANSMISSION.to_be_bytes());
    reply(writer, option, REP_INFO, &info).await?;
    for (kind, text) in
        [(INFO_NAME, export.name.as_str()), (INFO_DESCRIPTION, "sbk replicated volume")]
    {
        if wish.infos.contains(&kind) {
            let mut info = kind.to_be_bytes().to_vec();
            info.extend(text.as_bytes());
            reply(writer, option, REP_INFO, &info).await?;
        }
    }
    if wish.infos.contains(&INFO_BLOCK_SIZE) {
        let mut info = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [512, 4096, MAX_REQUEST_BYTES as u32] {
            info.extend(size.to_be_bytes());
        }
        reply(writer, option, REP_INFO, &info).await?;
    }
    Ok(())
}

async fn reply<W: AsyncWrite + Unpin>(
    writer: &mut W,
    option: u32,
    kind: u32,
    data: &[u8],
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend(REPLY_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    writer.write_all(&bytes).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Wish;

    #[test]
    fn a_wish_is_a_name_and_infos() {
        let mut data = 3u32.to_be_bytes().to_vec();
        data.extend(b"vol");
        data.extend(2u16.to_be_bytes());
        data.extend([0, 3, 0, 1]);
        let expected = Wish { name: "vol".to_owned(), infos: vec![3, 1] };
        assert_eq!(Wish::parse(&data), Some(expected));
        data.pop();
        assert_eq!(Wish::parse(&data), None, "cut short");
    }

    proptest! {
        #[test]
        fn any_wish_parses_or_is_refused(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(wish) = Wish::parse(&data) {
                prop_assert_eq!(data.len(), 6 + wish.name.len() + 2 * wish.infos.len());
            }
        }
    }
}
