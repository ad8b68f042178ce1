//! The negotiation: from the greeting to an agreed export.

use std::io;

use sbk_engine::types::MAX_REQUEST_BYTES;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::attach::attach;
use super::exports::{self, Export};
use super::options::{Contexts, Wish};
use super::wire::*;
use crate::catalogue::Catalogue;
use crate::frontend::{ClientHandle, Frontends};

/// Most bytes of one option. The longest that makes sense is a name and a list of infos.
const MAX_OPTION: u32 = 8192;
/// Options after which a client is taken for hostile.
const MAX_OPTIONS: usize = 64;

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// What was agreed on.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) export: Export,
    pub(super) framing: Framing,
    /// The client may ask which blocks are holes.
    pub(super) allocation: bool,
}

/// What options have set so far.
#[derive(Debug, Default)]
struct Settings {
    no_zeroes: bool,
    framing: Framing,
    /// The name of the export for which `base:allocation` was chosen.
    allocation: Option<String>,
}

impl Settings {
    fn agreed(&self, export: Export, name: &str, client: ClientHandle) -> Step {
        let allocation = self.allocation.as_deref() == Some(name);
        Step::Agreed(Agreed { export, framing: self.framing, allocation }, client)
    }
}

/// How a negotiation goes on.
pub(super) enum Outcome {
    /// The client ended it in order.
    Over,
    /// The client was told to begin its TLS handshake, and [negotiates](negotiate) within it.
    StartTls,
    /// An export was agreed on.
    Agreed(Agreed, ClientHandle),
}

/// Where a connection stands with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    /// The server has none.
    None,
    /// It must begin before anything else is answered.
    Demanded,
    /// All that is said is within it.
    InForce,
}

/// Says hello. What the client says of itself: whether it wants no padding.
pub(super) async fn greet<R, W>(reader: &mut R, writer: &mut W) -> io::Result<bool>
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
    Ok(flags & u32::from(FLAG_NO_ZEROES) != 0)
}

/// Agrees on an export, from a clean slate. Takes as long as the client takes: the caller sets the
/// limit.
///
/// No byte is read beyond an option: what comes behind a STARTTLS is of the TLS handshake, or a
/// forgery that fails it.
pub(super) async fn negotiate<R, W>(
    frontends: &Frontends,
    security: Security,
    no_zeroes: bool,
    reader: &mut R,
    writer: &mut W,
) -> io::Result<Outcome>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut settings = Settings { no_zeroes, ..Settings::default() };
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
        let step = match secured(security, option, &data) {
            Allowed::Yes => answer(frontends, writer, option, &data, &mut settings).await?,
            Allowed::StartTls => {
                reply(writer, option, REP_ACK, b"").await?;
                return Ok(Outcome::StartTls);
            }
            Allowed::No(kind, why) => {
                reply(writer, option, kind, why).await?;
                Step::Next
            }
            Allowed::Never(why) => return Err(broken(why)),
        };
        match step {
            Step::Next => {}
            Step::Over => return Ok(Outcome::Over),
            Step::Agreed(agreed, client) => return Ok(Outcome::Agreed(agreed, client)),
        }
    }
    Err(broken("too many options"))
}

/// Whether an option is answered on a connection that stands so with TLS.
enum Allowed {
    Yes,
    StartTls,
    /// With an error of this number, and why.
    No(u32, &'static [u8]),
    /// It has no error reply: the connection ends.
    Never(&'static str),
}

fn secured(security: Security, option: u32, data: &[u8]) -> Allowed {
    match (security, option) {
        (Security::None, OPT_STARTTLS) => Allowed::No(REP_ERR_POLICY, b"this server has no TLS"),
        (Security::None | Security::InForce, _) if option != OPT_STARTTLS => Allowed::Yes,
        (Security::InForce, _) => Allowed::No(REP_ERR_INVALID, b"TLS is in force already"),
        (_, OPT_STARTTLS) if !data.is_empty() => {
            Allowed::No(REP_ERR_INVALID, b"STARTTLS takes no data")
        }
        (_, OPT_STARTTLS) => Allowed::StartTls,
        (_, OPT_ABORT) => Allowed::Yes,
        (_, OPT_EXPORT_NAME) => Allowed::Never("EXPORT_NAME without TLS, which is demanded"),
        _ => Allowed::No(REP_ERR_TLS_REQD, b"this server is for TLS only; begin with STARTTLS"),
    }
}

enum Step {
    Next,
    Over,
    Agreed(Agreed, ClientHandle),
}

async fn answer<W: AsyncWrite + Unpin>(
    frontends: &Frontends,
    writer: &mut W,
    option: u32,
    data: &[u8],
    settings: &mut Settings,
) -> io::Result<Step> {
    let catalogue = frontends.catalogue().borrow().clone();
    match option {
        OPT_EXPORT_NAME => {
            if settings.framing == Framing::Extended {
                return Err(broken("EXPORT_NAME after extended headers were agreed on"));
            }
            let name = std::str::from_utf8(data).map_err(|_| broken("a name that is not UTF-8"))?;
            // This option has no error reply: closing is the answer.
            let export = exports::find(frontends, &catalogue, name)
                .ok_or_else(|| broken("no such export"))?;
            let client = attach(frontends, &export).await.map_err(|why| broken(&why))?;
            let flags = settings.framing.transmission_flags(export.exclusive);
            let mut bytes = Vec::with_capacity(134);
            bytes.extend(export.bytes.to_be_bytes());
            bytes.extend(flags.to_be_bytes());
            if !settings.no_zeroes {
                bytes.extend([0; 124]);
            }
            writer.write_all(&bytes).await?;
            writer.flush().await?;
            Ok(settings.agreed(export, name, client))
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
            let Some(export) = exports::find(frontends, &catalogue, &wish.name) else {
                unknown(writer, option, &catalogue, &wish.name).await?;
                return Ok(Step::Next);
            };
            // Only a GO attaches, and says so when it has.
            let attached = match option {
                OPT_GO => Some(attach(frontends, &export).await),
                _ => None,
            };
            if let Some(Err(why)) = &attached {
                tracing::info!(export = export.name, %why, "NBD: not attached");
                reply(writer, option, REP_ERR_POLICY, why.as_bytes()).await?;
                return Ok(Step::Next);
            }
            describe(writer, option, &export, &wish, settings.framing).await?;
            reply(writer, option, REP_ACK, b"").await?;
            Ok(match attached {
                Some(Ok(client)) => settings.agreed(export, &wish.name, client),
                Some(Err(_)) | None => Step::Next,
            })
        }
        OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS => {
            let (kind, text): (_, &[u8]) = match (option, settings.framing) {
                _ if !data.is_empty() => (REP_ERR_INVALID, b"the option takes no data"),
                (OPT_STRUCTURED_REPLY, Framing::Extended) => {
                    (REP_ERR_EXT_HEADER_REQD, b"extended headers were agreed on already")
                }
                _ => (REP_ACK, b""),
            };
            if kind == REP_ACK {
                let extended = option == OPT_EXTENDED_HEADERS;
                settings.framing = if extended { Framing::Extended } else { Framing::Structured };
            }
            reply(writer, option, kind, text).await?;
            Ok(Step::Next)
        }
        OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
            contexts(frontends, writer, option, data, settings).await?;
            Ok(Step::Next)
        }
        _ => {
            reply(writer, option, REP_ERR_UNSUP, b"").await?;
            Ok(Step::Next)
        }
    }
}

async fn unknown<W: AsyncWrite + Unpin>(
    writer: &mut W,
    option: u32,
    catalogue: &Catalogue,
    name: &str,
) -> io::Result<()> {
    let text = match catalogue.heard {
        true => format!("there is no volume '{name}'"),
        false => "this datanode has not heard from the masters yet; try again".to_owned(),
    };
    reply(writer, option, REP_ERR_UNKNOWN, text.as_bytes()).await
}

/// Answers which metadata contexts there are, or chooses among them.
async fn contexts<W: AsyncWrite + Unpin>(
    frontends: &Frontends,
    writer: &mut W,
    option: u32,
    data: &[u8],
    settings: &mut Settings,
) -> io::Result<()> {
    let set = option == OPT_SET_META_CONTEXT;
    if set {
        // Whatever comes of it, what was chosen before is chosen no more.
        settings.allocation = None;
    }
    if settings.framing == Framing::Simple {
        let text = b"structured replies must be agreed on first";
        return reply(writer, option, REP_ERR_INVALID, text).await;
    }
    let Some(contexts) = Contexts::parse(data) else {
        return reply(writer, option, REP_ERR_INVALID, b"malformed metadata contexts").await;
    };
    let catalogue = frontends.catalogue().borrow().clone();
    if exports::find(frontends, &catalogue, &contexts.name).is_none() {
        return unknown(writer, option, &catalogue, &contexts.name).await;
    }
    let named = contexts.queries.iter().any(|query| query == ALLOCATION);
    // Only a list knows wildcards: nothing at all, or a namespace.
    let listed = contexts.queries.is_empty() || contexts.queries.iter().any(|q| q == "base:");
    if named || (!set && listed) {
        let id = if set { ALLOCATION_ID } else { 0 };
        let mut bytes = id.to_be_bytes().to_vec();
        bytes.extend(ALLOCATION.as_bytes());
        reply(writer, option, REP_META_CONTEXT, &bytes).await?;
        if set {
            settings.allocation = Some(contexts.name);
        }
    }
    reply(writer, option, REP_ACK, b"").await
}

async fn describe<W: AsyncWrite + Unpin>(
    writer: &mut W,
    option: u32,
    export: &Export,
    wish: &Wish,
    framing: Framing,
) -> io::Result<()> {
    let mut info = Vec::with_capacity(14);
    info.extend(INFO_EXPORT.to_be_bytes());
    info.extend(export.bytes.to_be_bytes());
    info.extend(framing.transmission_flags(export.exclusive).to_be_bytes());
    reply(writer, option, REP_INFO, &info).await?;
    for (kind, text) in [(INFO_NAME, &export.name), (INFO_DESCRIPTION, &export.description)] {
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
    writer.write_all(&bytes).await?;
    writer.flush().await
}
