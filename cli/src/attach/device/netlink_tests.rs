//! Messages byte for byte, as the kernel's headers lay them out, and answers of every shape.

use proptest::prelude::*;

use super::*;

/// The bytes are those of a machine of low end first, as nearly all are.
#[cfg(target_endian = "little")]
mod bytes {
    use super::*;

    #[test]
    fn a_family_is_asked_for_by_name() {
        #[rustfmt::skip]
        let expected = [
            28, 0, 0, 0,  0x10, 0,  5, 0,  7, 0, 0, 0,  0, 0, 0, 0, // to the controller, REQUEST|ACK
            3, 1, 0, 0,                                             // GETFAMILY, version 1
            8, 0, 2, 0,  b'n', b'b', b'd', 0,                       // FAMILY_NAME
        ];
        assert_eq!(Ask::Family("nbd").encode(CONTROLLER, 7), expected);
    }

    #[test]
    fn a_device_is_connected_with_all_it_is_made_of() {
        let connect = Connect {
            index: Some(3),
            bytes: 1 << 30,
            block_size: 4096,
            flags: 0x0c6d,
            socket: 9,
            dead_conn_timeout: 120,
            identifier: "sbk:x",
        };
        #[rustfmt::skip]
        let attributes = [
            12, 0, 2, 0,  0, 0, 0, 0x40, 0, 0, 0, 0,      // SIZE_BYTES
            12, 0, 3, 0,  0, 0x10, 0, 0, 0, 0, 0, 0,      // BLOCK_SIZE_BYTES
            12, 0, 4, 0,  0, 0, 0, 0, 0, 0, 0, 0,         // TIMEOUT: none
            12, 0, 5, 0,  0x6d, 0x0c, 0, 0, 0, 0, 0, 0,   // SERVER_FLAGS
            12, 0, 8, 0,  120, 0, 0, 0, 0, 0, 0, 0,       // DEAD_CONN_TIMEOUT
            16, 0, 7, 0,  12, 0, 1, 0,  8, 0, 1, 0,  9, 0, 0, 0, // SOCKETS, an ITEM, its FD
            9, 0, 10, 0,  b's', b'b', b'k', b':', b'x', 0, 0, 0, // BACKEND_IDENTIFIER, padded
        ];
        #[rustfmt::skip]
        let head = [
            116, 0, 0, 0,  28, 0,  5, 0,  1, 0, 0, 0,  0, 0, 0, 0,
            1, 1, 0, 0,                                   // CONNECT
            8, 0, 1, 0,  3, 0, 0, 0,                      // INDEX
        ];
        let expected = [&head[..], &attributes].concat();
        assert_eq!(Ask::Connect(connect.clone()).encode(28, 1), expected);
        // Without an index the kernel chooses.
        let auto = Ask::Connect(Connect { index: None, ..connect }).encode(28, 1);
        #[rustfmt::skip]
        let head = [108, 0, 0, 0,  28, 0,  5, 0,  1, 0, 0, 0,  0, 0, 0, 0,  1, 1, 0, 0];
        assert_eq!(auto, [&head[..], &attributes].concat());
    }

    #[test]
    fn a_device_gets_another_socket_is_looked_at_and_disconnected() {
        let again =
            Ask::Reconfigure { index: 3, socket: 9, dead_conn_timeout: 2, identifier: "sbk" };
        #[rustfmt::skip]
        let expected = [
            64, 0, 0, 0,  28, 0,  5, 0,  2, 0, 0, 0,  0, 0, 0, 0,
            3, 1, 0, 0,                                   // RECONFIGURE
            8, 0, 1, 0,  3, 0, 0, 0,
            12, 0, 8, 0,  2, 0, 0, 0, 0, 0, 0, 0,
            16, 0, 7, 0,  12, 0, 1, 0,  8, 0, 1, 0,  9, 0, 0, 0,
            7, 0, 10, 0,  b's', b'b', b'k', 0,
        ];
        assert_eq!(again.encode(28, 2), expected);
        let larger = Ask::Resize { index: 3, bytes: 1 << 32, identifier: "sbk" };
        #[rustfmt::skip]
        let expected = [
            48, 0, 0, 0,  28, 0,  5, 0,  2, 0, 0, 0,  0, 0, 0, 0,
            3, 1, 0, 0,                                   // RECONFIGURE
            8, 0, 1, 0,  3, 0, 0, 0,
            12, 0, 2, 0,  0, 0, 0, 0, 1, 0, 0, 0,
            7, 0, 10, 0,  b's', b'b', b'k', 0,
        ];
        assert_eq!(larger.encode(28, 2), expected);
        let of = |command| {
            #[rustfmt::skip]
            let expected = vec![
                28, 0, 0, 0,  28, 0,  5, 0,  2, 0, 0, 0,  0, 0, 0, 0,
                command, 1, 0, 0,
                8, 0, 1, 0,  3, 0, 0, 0,
            ];
            expected
        };
        assert_eq!(Ask::Disconnect { index: 3 }.encode(28, 2), of(2));
        assert_eq!(Ask::Status { index: 3 }.encode(28, 2), of(5));
    }

    #[test]
    fn answers_are_read_as_the_kernel_writes_them() {
        #[rustfmt::skip]
        let told = [
            28, 0, 0, 0,  0x10, 0,  0, 0,  7, 0, 0, 0,  1, 0, 0, 0,
            1, 2, 0, 0,
            6, 0, 1, 0,  28, 0, 0, 0,                     // FAMILY_ID, padded
        ];
        #[rustfmt::skip]
        let done = [
            36, 0, 0, 0,  2, 0,  0, 1,  7, 0, 0, 0,  1, 0, 0, 0,
            0, 0, 0, 0,                                   // no error, then the request's header
            28, 0, 0, 0,  0x10, 0,  5, 0,  7, 0, 0, 0,  0, 0, 0, 0,
        ];
        let datagram = [&told[..], &done].concat();
        let both = answers(&datagram, 7).expect("both are whole");
        assert_eq!(both, [Answer::Told(&told[20..]), Answer::End(Ok(()))]);
        assert_eq!(family(&told[20..]), Ok(28));
        assert_eq!(answers(&datagram, 8), Ok(vec![]), "they answer something else");

        #[rustfmt::skip]
        let busy = [20, 0, 0, 0,  2, 0,  0, 0,  7, 0, 0, 0,  1, 0, 0, 0,  0xf0, 0xff, 0xff, 0xff];
        assert_eq!(answers(&busy, 7), Ok(vec![Answer::End(Err(Errno::BUSY))]));

        assert_eq!(connected(&[8, 0, 1, 0, 5, 0, 0, 0]), Ok(5));
        #[rustfmt::skip]
        let two = [
            44, 0, 9, 0,
            20, 0, 1, 0,  8, 0, 1, 0,  0, 0, 0, 0,  5, 0, 2, 0,  0, 0, 0, 0,
            20, 0, 1, 0x80,  8, 0, 1, 0,  1, 0, 0, 0,  5, 0, 2, 0,  1, 0, 0, 0, // marked as nested
        ];
        assert_eq!(status(&two, 0), Ok(Some(false)));
        assert_eq!(status(&two, 1), Ok(Some(true)));
        assert_eq!(status(&two, 2), Ok(None));
        assert_eq!(status(&[4, 0, 9, 0], 0), Ok(None), "no such device");
    }

    #[test]
    fn what_is_cut_short_or_lies_about_its_length_is_refused() {
        #[rustfmt::skip]
        let done = [20, 0, 0, 0,  2, 0,  0, 0,  7, 0, 0, 0,  1, 0, 0, 0,  0, 0, 0, 0];
        for length in 1..done.len() {
            answers(&done[..length], 7).expect_err("is cut short");
        }
        for (at, wrong) in [(0, 15), (0, 21), (1, 1), (3, 0xff), (19, 1), (19, 0x80)] {
            let mut bytes = done;
            bytes[at] = wrong;
            answers(&bytes, 7).expect_err("says what is not");
        }
        let mut short = done;
        short[0] = 16;
        short[4] = 0x10;
        answers(&short[..16], 7).expect_err("a family's message has a command");

        assert_eq!(family(&[]), Err(Malformed("a family without a number")));
        for wrong in [
            &[6, 0, 1, 0, 28][..], // its payload is missing
            &[5, 0, 1, 0, 28],     // half a number
            &[3, 0, 1, 0, 28, 0],  // shorter than its header
            &[0, 0, 1, 0],         // no length: it would never end
            &[6, 0],
        ] {
            family(wrong).expect_err("is no family");
        }
        connected(&[6, 0, 1, 0, 5, 0, 0, 0]).expect_err("half an index");
        status(&[8, 0, 1, 0, 0, 0, 0, 0], 0).expect_err("no list");
        status(&[12, 0, 9, 0, 8, 0, 1, 0, 5, 0, 2, 0], 0).expect_err("a device without an index");
        status(&[16, 0, 9, 0, 12, 0, 1, 0, 8, 0, 1, 0, 0, 0, 0, 0], 0).expect_err("no state");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..96),
        length in 0..96u32,
        sequence in 0..2u32,
    ) {
        // Any headers at all, and one that fits.
        let mut framed = bytes.clone();
        if framed.len() >= HEADER {
            framed[..4].copy_from_slice(&length.to_ne_bytes());
            framed[8..12].copy_from_slice(&sequence.to_ne_bytes());
        }
        for datagram in [&bytes, &framed] {
            if let Ok(answers) = answers(datagram, sequence) {
                let told = answers.iter().map(|answer| match answer {
                    Answer::Told(told) => told.len(),
                    Answer::End(_) => 0,
                });
                prop_assert!(told.sum::<usize>() <= datagram.len());
            }
        }
        let all = Attributes(&bytes).filter_map(Result::ok);
        let taken: usize = all.map(|(_, payload)| ATTRIBUTE_HEADER + payload.len()).sum();
        prop_assert!(taken <= bytes.len(), "no byte counts twice");
        for read in [family(&bytes).map(u32::from), connected(&bytes)] {
            prop_assert!(read.is_err() || bytes.len() >= 6);
        }
        prop_assert!(status(&bytes, 0).ok().flatten().is_none() || bytes.len() >= 25);
    }

    #[test]
    fn what_was_asked_reads_back(index: u32, bytes: u64, flags: u16, name in "[ -~]{0,64}") {
        let connect = Connect {
            index: Some(index), bytes, block_size: 4096, flags, socket: 5,
            dead_conn_timeout: 1, identifier: &name,
        };
        let message = Ask::Connect(connect).encode(FIRST_FAMILY, 3);
        let told = answers(&message, 3).expect("is whole");
        let [Answer::Told(attributes)] = told[..] else { panic!("{told:?}") };
        prop_assert_eq!(connected(attributes), Ok(index));
        let found = |kind| find(attributes, kind).expect("is whole").expect("is there");
        prop_assert_eq!(found(SIZE_BYTES), bytes.to_ne_bytes());
        prop_assert_eq!(found(SERVER_FLAGS), u64::from(flags).to_ne_bytes());
        prop_assert_eq!(found(BACKEND_IDENTIFIER), name.as_bytes());
    }
}
