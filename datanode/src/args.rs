//! The command line of a datanode, and what it comes to with the environment and a file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use sbk_store::{DirId, Place};
use serde::Deserialize;

use crate::frontend::nbd::TlsFiles;
use crate::patrol::{Schedule, Window, parse_time};
use crate::space::{SpaceLimits, Watermark};

/// How long a client's request is held if nothing else is said.
const IO_TIMEOUT: Duration = Duration::from_secs(120);

/// What rebuilds read in a second, beside clients, if nothing else is said.
const RECOVERY_RATE: u64 = 64 << 20;
/// With less, many at a time would each come on so slowly that they pass for stalled.
const MIN_RECOVERY_RATE: u64 = 8 << 20;

/// For how long WAL is kept for others at most, if nothing else is said.
const WAL_RETAIN_TIME: Duration = Duration::from_secs(24 * 3600);

/// How long it is from one look at a replica to the next one, if nothing else is said.
const SCRUB_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);
/// What a second of that reads.
const SCRUB_RATE: u64 = 8 << 20;
/// A region is read in one go.
const MIN_SCRUB_RATE: u64 = 1 << 20;

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A datanode of sbk: it holds replicas, replicates them, and serves volumes over NBD.
#[derive(Clone, Debug, Default, Parser)]
#[command(
    name = "sbk-datanode",
    version,
    after_help = "Example:\n  sbk-datanode --data-dir /var/lib/sbk --masters \
                  10.0.0.1:7101,10.0.0.2:7101,10.0.0.3:7101 \\\n      --listen 10.0.0.11:7301 \
                  --http 127.0.0.1:7401 --nbd 127.0.0.1:10809\n\nEvery option may also stand in a \
                  TOML file given with --config, as in `data_dir = \"/var/lib/sbk\"`; options go \
                  before the environment, the environment before the file."
)]
pub struct Args {
    /// Where the node's identity and its replicas are kept. Once for each disk (or DIR,... in the
    /// environment): a replica is on one of them, and one that fails takes no more than its own with it
    #[arg(long, env = "SBK_DATA_DIR", value_name = "DIR", value_delimiter = ',')]
    pub data_dir: Option<Vec<PathBuf>>,
    /// A block device to keep replicas on, without a file system: best by a name that stays, as in
    /// /dev/disk/by-id/... Once for each (or DEVICE,... in the environment), beside data directories or instead
    /// of them. One that was never used has to have zeros in its first and last MiB
    #[arg(long, env = "SBK_DEVICE", value_name = "DEVICE", value_delimiter = ',')]
    pub device: Option<Vec<PathBuf>>,
    /// A data directory or device that is lost for good, by its id as errors and `sbkctl node show` name it: its
    /// replicas are lost, and an empty one may take its place. It may stay given
    #[arg(long, env = "SBK_LOST_DIR", value_name = "ID", value_delimiter = ',')]
    pub lost_dir: Option<Vec<DirId>>,
    /// Where it is kept whether entries that were written and not synced may be gone: a directory in
    /// memory that outlives the process [default: /run/sbk]
    #[arg(long, env = "SBK_RUNTIME_DIR", value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// The masters: HOST:PORT,...
    #[arg(long, env = "SBK_MASTERS", value_name = "LIST", value_delimiter = ',')]
    pub masters: Option<Vec<String>>,
    /// gRPC: other datanodes [default: 127.0.0.1:7301]
    #[arg(long, env = "SBK_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<SocketAddr>,
    /// HTTP, read-only: status, trace, metrics [default: 127.0.0.1:7401]
    #[arg(long, env = "SBK_HTTP", value_name = "HOST:PORT")]
    pub http: Option<SocketAddr>,
    /// NBD: clients [default: 127.0.0.1:10809]
    #[arg(long, env = "SBK_NBD", value_name = "HOST:PORT")]
    pub nbd: Option<SocketAddr>,
    /// PEM file with the NBD server's certificate, and those up to the one that clients trust: from
    /// then on nobody is served over NBD without TLS
    #[arg(long, env = "SBK_NBD_TLS_CERT", value_name = "FILE")]
    pub nbd_tls_cert: Option<PathBuf>,
    /// PEM file with its private key
    #[arg(long, env = "SBK_NBD_TLS_KEY", value_name = "FILE")]
    pub nbd_tls_key: Option<PathBuf>,
    /// PEM file with the authorities whose certificates NBD clients must show [default: they need none]
    #[arg(long, env = "SBK_NBD_TLS_CLIENT_CA", value_name = "FILE")]
    pub nbd_tls_client_ca: Option<PathBuf>,
    /// The name or address by which others reach this node, where the listeners are on all
    /// addresses.
    #[arg(long, env = "SBK_ADVERTISE", value_name = "HOST")]
    pub advertise: Option<String>,
    /// The zone that the node is in; replicas of a volume are spread over zones if asked for.
    #[arg(long, env = "SBK_ZONE", value_name = "NAME")]
    pub zone: Option<String>,
    /// File with the keys that the keys of encrypted volumes' replicas are wrapped with, one a line, the one for new
    /// ones first; only its owner may read it [default: the node holds no replicas of encrypted volumes]
    #[arg(long, env = "SBK_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Bytes of WAL that each replica keeps for others that come back, beyond what it needs itself
    /// (256MiB, 1GiB, or plain bytes) [default: 256MiB]
    #[arg(long, env = "SBK_WAL_RETAIN", value_name = "BYTES", value_parser = parse_bytes)]
    pub wal_retain: Option<u64>,
    /// For how long at most it is kept (7d, 12h, 30m, 90s); 0: for as long as there is room for it
    /// [default: 1d]
    #[arg(long, env = "SBK_WAL_RETAIN_TIME", value_name = "TIME", value_parser = parse_time)]
    pub wal_retain_time: Option<Duration>,
    /// Bytes a second that rebuilds of other nodes' replicas read here while clients are answered; without
    /// clients they go as fast as they can; 8MiB or more, 0: they do not give way [default: 64MiB]
    #[arg(long, env = "SBK_RECOVERY_RATE", value_name = "BYTES", value_parser = parse_bytes)]
    pub recovery_rate: Option<u64>,
    /// From the end of one scrub of a replica in the background to the next one (7d, 12h, 30m, 90s); 0:
    /// never [default: 7d]
    #[arg(long, env = "SBK_SCRUB_EVERY", value_name = "TIME", value_parser = parse_time)]
    pub scrub_every: Option<Duration>,
    /// Most bytes that it reads in a second; 1MiB or more, 0: no limit [default: 8MiB]
    #[arg(long, env = "SBK_SCRUB_RATE", value_name = "BYTES", value_parser = parse_bytes)]
    pub scrub_rate: Option<u64>,
    /// The hours of the day (UTC) in which it reads, as in 22-6 [default: all]
    #[arg(long, env = "SBK_SCRUB_WINDOW", value_name = "FROM-TO")]
    pub scrub_window: Option<Window>,
    /// Bytes that replicas may take in each data directory, and on each device [default: the size of its file system, and of the device]
    #[arg(long, env = "SBK_CAPACITY", value_name = "BYTES", value_parser = parse_bytes)]
    pub capacity: Option<u64>,
    /// Free space below which writes that need new space wait, as 5% of the disk or in bytes; 0: none is held
    /// back [default: 5%, and 256MiB or more where that is no more than 10%]
    #[arg(long, env = "SBK_GROWTH_WATERMARK", value_name = "SPACE", value_parser = Watermark::parse)]
    pub growth_watermark: Option<Watermark>,
    /// Free space below which the masters put no new replica on the disk, as 10% of it or in bytes; never less
    /// than the growth watermark [default: twice that, but no more than 10% of the disk above it]
    #[arg(long, env = "SBK_PLACEMENT_WATERMARK", value_name = "SPACE", value_parser = Watermark::parse)]
    pub placement_watermark: Option<Watermark>,
    /// Seconds after which a client's request that no primary has answered fails; 0: never, it waits
    /// for as long as it takes [default: 120]
    #[arg(long, env = "SBK_IO_TIMEOUT", value_name = "SECONDS")]
    pub io_timeout: Option<u32>,
    /// How logs are written [default: text on a terminal, else json]
    #[arg(long, env = "SBK_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// A TOML file with options.
    #[arg(long, env = "SBK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What may stand in the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileArgs {
    data_dir: Option<Paths>,
    device: Option<Paths>,
    lost_dir: Option<Vec<String>>,
    runtime_dir: Option<PathBuf>,
    masters: Option<Vec<String>>,
    listen: Option<SocketAddr>,
    http: Option<SocketAddr>,
    nbd: Option<SocketAddr>,
    nbd_tls_cert: Option<PathBuf>,
    nbd_tls_key: Option<PathBuf>,
    nbd_tls_client_ca: Option<PathBuf>,
    advertise: Option<String>,
    zone: Option<String>,
    key_file: Option<PathBuf>,
    wal_retain: Option<Amount>,
    wal_retain_time: Option<String>,
    recovery_rate: Option<Amount>,
    scrub_every: Option<String>,
    scrub_rate: Option<Amount>,
    scrub_window: Option<String>,
    capacity: Option<Amount>,
    growth_watermark: Option<Amount>,
    placement_watermark: Option<Amount>,
    io_timeout: Option<u32>,
    log_format: Option<LogFormat>,
}

/// Bytes, as a number or with a unit.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Amount {
    Bytes(u64),
    Text(String),
}

/// One directory or device, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Paths {
    One(PathBuf),
    Several(Vec<PathBuf>),
}

impl From<Paths> for Vec<PathBuf> {
    fn from(paths: Paths) -> Self {
        match paths {
            Paths::One(path) => vec![path],
            Paths::Several(paths) => paths,
        }
    }
}

/// Everything decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the node's identity and its replicas are kept, directories first; at least one.
    pub disks: Vec<Place>,
    /// Those that are given up.
    pub lost_dirs: Vec<DirId>,
    /// Where the replicas' tails are kept.
    pub runtime_dir: PathBuf,
    /// The masters, `host:port` each.
    pub masters: Vec<String>,
    /// gRPC.
    pub listen: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
    /// NBD.
    pub nbd: SocketAddr,
    /// What NBD is served with TLS from; `None`: without.
    pub nbd_tls: Option<TlsFiles>,
    /// The name or address by which others reach this node.
    pub advertise: Option<String>,
    /// The node's zone, empty for none.
    pub zone: String,
    /// The keys that the keys of encrypted replicas are wrapped with.
    pub key_file: Option<PathBuf>,
    /// Bytes of WAL that each replica keeps beyond what it needs itself.
    pub wal_retain: u64,
    /// For how long at most it is kept; zero: for as long as there is room for it.
    pub wal_retain_time: Duration,
    /// Bytes a second that rebuilds read while clients are answered; 0: they do not give way.
    pub recovery_rate: u64,
    /// When replicas are scrubbed in the background.
    pub scrub: Schedule,
    /// What replicas may take of each disk.
    pub space: SpaceLimits,
    /// How long a client's request is held; zero: for ever.
    pub io_timeout: Duration,
    /// How logs are written.
    pub log_format: LogFormat,
}

/// What is wrong with the options.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// One that has no default is missing.
    #[error("{option} is missing; pass it, set {variable}, or write it into the --config file")]
    Missing {
        /// The option.
        option: &'static str,
        /// Its environment variable.
        variable: &'static str,
    },
    /// The file can't be read.
    #[error("can't read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no such TOML.
    #[error("the configuration file {} is wrong: {source}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{option}: {problem}")]
    Value {
        /// The option.
        option: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl Args {
    /// Options and environment (which the parser has merged), then the file, then defaults.
    pub fn settings(self) -> Result<Settings, SettingsError> {
        let file = self.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let missing = |option, variable| SettingsError::Missing { option, variable };
        let dirs = self.data_dir.or(file.data_dir.map(Vec::from)).unwrap_or_default();
        let devices = self.device.or(file.device.map(Vec::from)).unwrap_or_default();
        let dirs = dirs.into_iter().map(Place::Dir);
        let disks: Vec<_> = dirs.chain(devices.into_iter().map(Place::Device)).collect();
        let in_file = file.lost_dir.unwrap_or_default();
        let in_file = in_file.iter().map(|id| {
            let problem = format!("'{id}' is no id of a directory");
            id.parse().map_err(|_| SettingsError::Value { option: "lost_dir", problem })
        });
        let in_file = in_file.collect::<Result<Vec<DirId>, _>>()?;
        let lost_dirs = self.lost_dir.unwrap_or(in_file);
        let masters = self.masters.or(file.masters).unwrap_or_default();
        if disks.is_empty() {
            return Err(missing("--data-dir (or --device)", "SBK_DATA_DIR"));
        }
        if masters.is_empty() {
            return Err(missing("--masters", "SBK_MASTERS"));
        }
        if let Some(addr) = masters.iter().find(|addr| !is_host_port(addr)) {
            let problem = format!("'{addr}' is not HOST:PORT");
            return Err(SettingsError::Value { option: "--masters", problem });
        }
        let bytes = |given: Option<u64>, in_file: Option<Amount>, option| match (given, in_file) {
            (Some(bytes), _) | (None, Some(Amount::Bytes(bytes))) => Ok(Some(bytes)),
            (None, Some(Amount::Text(text))) => parse_bytes(&text)
                .map(Some)
                .map_err(|problem| SettingsError::Value { option, problem }),
            (None, None) => Ok(None),
        };
        let rate = bytes(self.recovery_rate, file.recovery_rate, "--recovery-rate")?;
        let recovery_rate = rate.unwrap_or(RECOVERY_RATE);
        if recovery_rate > 0 && recovery_rate < MIN_RECOVERY_RATE {
            let problem = format!(
                "{recovery_rate} bytes a second are too few for rebuilds to come on; give 8MiB or \
                 more, or 0"
            );
            return Err(SettingsError::Value { option: "--recovery-rate", problem });
        }
        let rate = bytes(self.scrub_rate, file.scrub_rate, "--scrub-rate")?.unwrap_or(SCRUB_RATE);
        if rate > 0 && rate < MIN_SCRUB_RATE {
            let problem = format!("{rate} bytes a second are too few; give 1MiB or more, or 0");
            return Err(SettingsError::Value { option: "--scrub-rate", problem });
        }
        let wrong = |option| move |problem| SettingsError::Value { option, problem };
        let time = |given: Option<Duration>, in_file: Option<String>, option| match (given, in_file)
        {
            (None, Some(text)) => parse_time(&text).map(Some).map_err(wrong(option)),
            (given, _) => Ok(given),
        };
        let every = time(self.scrub_every, file.scrub_every, "--scrub-every")?;
        let retain_time = time(self.wal_retain_time, file.wal_retain_time, "--wal-retain-time")?;
        let window = file.scrub_window.map(|text| text.parse()).transpose();
        let window = self.scrub_window.or(window.map_err(wrong("--scrub-window"))?);
        let scrub = Schedule { every: every.unwrap_or(SCRUB_EVERY), rate, window };
        let client_ca = self.nbd_tls_client_ca.or(file.nbd_tls_client_ca);
        let nbd_tls = match (
            self.nbd_tls_cert.or(file.nbd_tls_cert),
            self.nbd_tls_key.or(file.nbd_tls_key),
        ) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key, client_ca }),
            (None, None) if client_ca.is_none() => None,
            (Some(_), None) => return Err(missing("--nbd-tls-key", "SBK_NBD_TLS_KEY")),
            (None, _) => return Err(missing("--nbd-tls-cert", "SBK_NBD_TLS_CERT")),
        };
        Ok(Settings {
            disks,
            lost_dirs,
            runtime_dir: self
                .runtime_dir
                .or(file.runtime_dir)
                .unwrap_or_else(|| PathBuf::from("/run/sbk")),
            masters,
            listen: self.listen.or(file.listen).unwrap_or(([127, 0, 0, 1], 7301).into()),
            http: self.http.or(file.http).unwrap_or(([127, 0, 0, 1], 7401).into()),
            nbd: self.nbd.or(file.nbd).unwrap_or(([127, 0, 0, 1], 10809).into()),
            nbd_tls,
            advertise: self.advertise.or(file.advertise),
            zone: self.zone.or(file.zone).unwrap_or_default(),
            key_file: self.key_file.or(file.key_file),
            wal_retain: bytes(self.wal_retain, file.wal_retain, "wal_retain")?.unwrap_or(256 << 20),
            wal_retain_time: retain_time.unwrap_or(WAL_RETAIN_TIME),
            recovery_rate,
            scrub,
            space: SpaceLimits {
                capacity: bytes(self.capacity, file.capacity, "capacity")?,
                growth: watermark(
                    self.growth_watermark,
                    file.growth_watermark,
                    "growth_watermark",
                )?
                .unwrap_or_default(),
                placement: watermark(
                    self.placement_watermark,
                    file.placement_watermark,
                    "placement_watermark",
                )?,
            },
            io_timeout: self
                .io_timeout
                .or(file.io_timeout)
                .map_or(IO_TIMEOUT, |seconds| Duration::from_secs(seconds.into())),
            log_format: self.log_format.or(file.log_format).unwrap_or_else(|| {
                match std::io::IsTerminal::is_terminal(&std::io::stderr()) {
                    true => LogFormat::Text,
                    false => LogFormat::Json,
                }
            }),
        })
    }
}

/// What was given on the command line, else in the file.
fn watermark(
    given: Option<Watermark>,
    file: Option<Amount>,
    option: &'static str,
) -> Result<Option<Watermark>, SettingsError> {
    let value = |problem| SettingsError::Value { option, problem };
    match (given, file) {
        (Some(watermark), _) => Ok(Some(watermark)),
        (None, Some(Amount::Bytes(bytes))) => Ok(Some(Watermark::Bytes(bytes))),
        (None, Some(Amount::Text(text))) => Watermark::parse(&text).map(Some).map_err(value),
        (None, None) => Ok(None),
    }
}

fn read_file(path: &Path) -> Result<FileArgs, SettingsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|source| SettingsError::Toml { path: path.to_owned(), source: Box::new(source) })
}

fn is_host_port(addr: &str) -> bool {
    addr.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// Bytes from `1048576`, `1MiB`, `512KiB`, `2GiB` or `1TiB`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(format!("'{text}' is not bytes; write 268435456 or 256MiB")),
    };
    let number: u64 =
        number.parse().map_err(|_| format!("'{text}' is not bytes; write 268435456 or 256MiB"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too much"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Args {
        Args::parse_from([&["sbk-datanode"], args].concat())
    }

    #[test]
    fn options_go_before_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sbk.toml");
        let text = "data_dir = \"/a\"\nmasters = [\"m:1\"]\nzone = \"x\"\nwal_retain = \"1MiB\"\n";
        std::fs::write(&path, text).expect("written");
        let config = path.to_str().expect("UTF-8");
        let settings = parse(&["--config", config, "--zone", "y"]).settings().expect("is complete");
        let dir = |path: &str| Place::Dir(path.into());
        assert_eq!(settings.disks, [dir("/a")]);
        let two = ["--config", config, "--data-dir", "/b", "--data-dir", "/c"];
        let two = parse(&two).settings().expect("is complete").disks;
        assert_eq!(two, [dir("/b"), dir("/c")]);
        let several = text.replace("\"/a\"", "[\"/a\", \"/d\"]");
        std::fs::write(&path, several).expect("written");
        let two = parse(&["--config", config]).settings().expect("is complete").disks;
        assert_eq!(two, [dir("/a"), dir("/d")]);
        // Devices are had beside directories, or alone.
        let devices = ["--config", config, "--device", "/dev/x", "--device", "/dev/y"];
        let four = parse(&devices).settings().expect("is complete").disks;
        let device = |path: &str| Place::Device(path.into());
        assert_eq!(four, [dir("/a"), dir("/d"), device("/dev/x"), device("/dev/y")]);
        std::fs::write(&path, text.replace("data_dir = \"/a\"", "device = \"/dev/z\""))
            .expect("written");
        let one = parse(&["--config", config]).settings().expect("is complete").disks;
        assert_eq!(one, [device("/dev/z")]);
        assert_eq!((settings.zone.as_str(), settings.wal_retain), ("y", 1 << 20));
        assert_eq!(settings.masters, ["m:1"]);
        assert_eq!((settings.io_timeout, settings.recovery_rate), (IO_TIMEOUT, RECOVERY_RATE));
        std::fs::write(&path, format!("{text}io_timeout = 7\n")).expect("written");
        assert_eq!(settings.scrub, Schedule { every: SCRUB_EVERY, rate: SCRUB_RATE, window: None });
        assert_eq!(settings.wal_retain_time, WAL_RETAIN_TIME);
        let scrub = "wal_retain_time = \"2h\"\nscrub_every = \"1d\"\nscrub_rate = \"2MiB\"\nscrub_window = \"22-6\"\n";
        std::fs::write(&path, format!("{text}{scrub}")).expect("written");
        let read = parse(&["--config", config, "--scrub-every", "0"]).settings();
        let window = Some("22-6".parse().expect("hours"));
        let wanted = Schedule { every: Duration::ZERO, rate: 2 << 20, window };
        let read = read.expect("is complete");
        assert_eq!((read.scrub, read.wal_retain_time), (wanted, Duration::from_secs(7200)));
        std::fs::write(&path, format!("{text}scrub_window = \"x\"\n")).expect("written");
        let wrong = parse(&["--config", config]).settings().expect_err("is wrong").to_string();
        assert!(wrong.contains("--scrub-window") && wrong.contains("'x'"), "{wrong}");
        std::fs::write(&path, format!("{text}io_timeout = 7\n")).expect("written");
        let held = |args: &[&str]| parse(args).settings().expect("is complete").io_timeout;
        assert_eq!(held(&["--config", config]), Duration::from_secs(7));
        assert_eq!(held(&["--config", config, "--io-timeout", "0"]), Duration::ZERO);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = |args: &[&str]| parse(args).settings().expect_err("is wrong").to_string();
        assert!(text(&["--masters", "m:1"]).contains("--data-dir"));
        assert!(text(&["--data-dir", "/a"]).contains("SBK_MASTERS"));
        assert!(text(&["--data-dir", "/a", "--masters", "m"]).contains("'m'"));
        assert!(text(&["--config", "/does/not/exist"]).contains("/does/not/exist"));
        let whole = ["--data-dir", "/a", "--masters", "m:1"];
        let slow = [&whole[..], &["--recovery-rate", "1MiB"]].concat();
        assert!(text(&slow).contains("8MiB"));
        let off = parse(&[&whole[..], &["--recovery-rate", "0"]].concat()).settings();
        assert_eq!(off.expect("is right").recovery_rate, 0);
        let slow = [&whole[..], &["--scrub-rate", "1KiB"]].concat();
        assert!(text(&slow).contains("1MiB"));
        let tls = |more: &[&str]| text(&[&whole[..], more].concat());
        assert!(tls(&["--nbd-tls-cert", "c"]).contains("--nbd-tls-key"));
        assert!(tls(&["--nbd-tls-key", "k"]).contains("--nbd-tls-cert"));
        assert!(tls(&["--nbd-tls-client-ca", "a"]).contains("--nbd-tls-cert"));
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sbk.toml");
        std::fs::write(&path, "dta_dir = \"/a\"").expect("written");
        assert!(text(&["--config", path.to_str().expect("UTF-8")]).contains("dta_dir"));
    }

    #[test]
    fn bytes_have_units() {
        assert_eq!(parse_bytes("17"), Ok(17));
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        for bad in ["", "MiB", "1MB", "-1", "99999999TiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
