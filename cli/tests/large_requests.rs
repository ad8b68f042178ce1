//! The longest requests of NBD on replicas with real stores: 32 MiB wherever they begin, and trims
//! and zeroes of 4 GiB.

use std::time::Duration;

use bytes::Bytes;
use sbk_cli::args::VolumeSpec;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::workload::nbd::NbdClient;

const GIB: u64 = 1 << 30;
const SIZE: u64 = 6 * GIB;
/// The longest that whole sectors can be.
const MOST: u32 = u32::MAX - 511;

#[tokio::test]
async fn the_longest_requests_are_served() {
    let dir = tempfile::tempdir().expect("dir");
    let mut options = Options::new(dir.path().to_owned()).expect("options");
    options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
    options.limit = Duration::from_secs(120);
    options.volumes = vec![VolumeSpec { name: "big".into(), size: SIZE }];
    let cluster = DevCluster::start(options).await.expect("the cluster starts");
    let client = NbdClient::connect(&cluster.file().datanodes[1].nbd, "big").await;
    let client = client.expect("connects");
    let ones = Bytes::from(vec![1; 65536]);
    let is = async |offset: u64, byte: u8, length: u32| {
        let found = client.read(offset, length).await.expect("reads");
        assert!(found.iter().all(|found| *found == byte), "{length} bytes at {offset}");
    };
    for offset in [0, 3 * GIB, SIZE - 65536] {
        client.write(offset, ones.clone()).await.expect("writes");
    }
    // To the byte: all but the first sector.
    client.write_zeroes(512, MOST).await.expect("zeroes");
    is(0, 1, 512).await;
    is(512, 0, 65024).await;
    is(3 * GIB, 0, 65536).await;
    // Whole blocks only: the volume's last one is not whole in it.
    client.trim(SIZE - 512 - u64::from(MOST), MOST).await.expect("trims");
    is(SIZE - 65536, 0, 61440).await;
    is(SIZE - 4096, 1, 4096).await;
    client.write_zeroes(SIZE - 4096, 4096).await.expect("zeroes");
    client.trim(0, MOST).await.expect("trims");
    client.flush().await.expect("flushes");
    is(0, 0, 4096).await;
    is(SIZE - 4096, 0, 4096).await;

    let data: Vec<u8> = (0..32 << 20).map(|at: u32| (at / 512 % 251) as u8).collect();
    let (data, length) = (Bytes::from(data), 32 << 20);
    for offset in [512, 4 * GIB - 1536, SIZE - u64::from(length) - 512] {
        client.write(offset, data.clone()).await.expect("writes");
        assert!(client.read(offset, length).await.expect("reads") == data, "at {offset}");
        is(offset - 512, 0, 512).await;
        is(offset + u64::from(length), 0, 512).await;
    }
    client.disconnect().await;
    cluster.stop().await.expect("stops");
}
