//! The state machine alone.

use std::sync::Arc;

use proptest::prelude::*;
use vhdkit_nbd::{Catalog, replay};

use crate::support::{MIB, Memory};

fn catalog() -> Arc<Catalog> {
    let mut catalog = Catalog::new();
    catalog.add("test", Arc::new(Memory::new(MIB))).unwrap();
    catalog.add("other", Arc::new(Memory::new(512))).unwrap();
    Arc::new(catalog)
}

fn text(name: &str) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap();
    [&length.to_be_bytes()[..], name.as_bytes()].concat()
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [
        b"IHAVEOPT",
        &number.to_be_bytes()[..],
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

/// Something a client might say: sense, near-sense, nonsense.
fn words() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("test"), Just(""), Just("other"), Just("nobody")];
    let query = prop_oneof![
        Just("base:allocation"),
        Just("base:"),
        Just(""),
        Just("x-y:z")
    ];
    prop_oneof![
        (0_u32..14, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(n, d)| option(n, &d)),
        (0_u32..14).prop_map(|n| option(n, &[])),
        (
            prop_oneof![Just(6_u32), Just(7)],
            name.clone(),
            prop::collection::vec(0_u16..6, 0..5)
        )
            .prop_map(|(n, name, wanted)| {
                let mut data = text(name);
                data.extend(u16::try_from(wanted.len()).unwrap().to_be_bytes());
                for w in wanted {
                    data.extend(w.to_be_bytes());
                }
                option(n, &data)
            }),
        (9_u32..11, name, prop::collection::vec(query, 0..4)).prop_map(|(n, name, queries)| {
            let mut data = text(name);
            data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
            for q in queries {
                data.extend(text(q));
            }
            option(n, &data)
        }),
        (
            any::<bool>(),
            0_u16..9,
            0_u16..64,
            prop_oneof![0_u64..2 * MIB, any::<u64>()],
            prop_oneof![0_u32..5000, any::<u32>()]
        )
            .prop_map(|(extended, kind, flags, offset, length)| {
                let magic: u32 = if extended { 0x21E4_1C71 } else { 0x2560_9513 };
                let mut bytes = magic.to_be_bytes().to_vec();
                bytes.extend(flags.to_be_bytes());
                bytes.extend(kind.to_be_bytes());
                bytes.extend(1_u64.to_be_bytes());
                bytes.extend(offset.to_be_bytes());
                if extended {
                    bytes.extend(u64::from(length).to_be_bytes());
                } else {
                    bytes.extend(length.to_be_bytes());
                }
                if kind == 1 && length < 5000 {
                    bytes.extend(vec![0; length as usize]);
                }
                bytes
            }),
        prop::collection::vec(any::<u8>(), 0..20),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Never a panic; and what comes of it does not depend on how the network cuts it up.
    #[test]
    fn any_conversation_comes_to_the_same_in_any_pieces(
        flags in prop_oneof![9 => 0_u32..4, 1 => any::<u32>()],
        said in prop::collection::vec(words(), 0..12),
        cut in prop_oneof![Just(0_usize), 0_usize..40],
        piece in 1_usize..50,
        tls in any::<bool>(),
    ) {
        let mut input = [&flags.to_be_bytes()[..], &said.concat()].concat();
        input.truncate(input.len().saturating_sub(cut));
        let catalog = catalog();
        let whole = replay(&catalog, tls, &input, usize::MAX);
        prop_assert_eq!(&whole, &replay(&catalog, tls, &input, piece));
        prop_assert!(whole.consumed <= input.len());
        prop_assert!(whole.answers.len() < 100 * input.len() + 1000, "answers out of all proportion");
    }
}

#[test]
fn nothing_is_said_before_tls_and_nothing_is_remembered_from_before() {
    let catalog = catalog();
    let go = option(7, &[&text("test")[..], &[0, 0]].concat());
    let flags = 3_u32.to_be_bytes();
    for secret in [
        option(3, &[]),
        go.clone(),
        option(8, &[]),
        option(6, &[&text("test")[..], &[0, 0]].concat()),
    ] {
        let refused = replay(&catalog, true, &[&flags[..], &secret].concat(), 100);
        assert!(!refused.transmitted);
        let kind = 0x8000_0005_u32.to_be_bytes();
        assert!(
            refused.answers.windows(4).any(|w| w == kind),
            "TLS is required"
        );
        assert!(
            !refused.answers.windows(5).any(|w| w == b"other"),
            "a name was told"
        );
    }
    // Structured replies agreed on before TLS would not count: with SELECTIVE TLS an attacker could have asked.
    let input = [&flags[..], &option(5, &[]), &option(5, &[]), &go].concat();
    let twice = replay(&catalog, true, &input, 100);
    assert!(twice.transmitted);
    let without = replay(
        &catalog,
        false,
        &[&flags[..], &option(5, &[]), &go].concat(),
        100,
    );
    assert!(
        without.transmitted,
        "a refused STARTTLS does not end the connection"
    );
    let old = replay(
        &catalog,
        true,
        &[&flags[..], &option(1, b"test")].concat(),
        100,
    );
    assert!(old.closed && !old.transmitted);
}

#[test]
fn headers_and_replies_are_agreed_on_in_either_order_but_not_twice() {
    let catalog = catalog();
    let kinds = |options: &[u32]| -> Vec<u32> {
        let said: Vec<u8> = options.iter().flat_map(|&n| option(n, &[])).collect();
        let answers = replay(
            &catalog,
            false,
            &[&3_u32.to_be_bytes()[..], &said].concat(),
            7,
        )
        .answers;
        let mut rest = &answers[18..];
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            kinds.push(u32::from_be_bytes(rest[12..16].try_into().unwrap()));
            let length = u32::from_be_bytes(rest[16..20].try_into().unwrap()) as usize;
            rest = &rest[20 + length..];
        }
        kinds
    };
    let (invalid, required, unknown) = (0x8000_0003, 0x8000_000A, 0x8000_0001);
    assert_eq!(kinds(&[8, 11, 11]), [1, 1, invalid]);
    assert_eq!(kinds(&[11, 8]), [1, required]);
    assert_eq!(kinds(&[8, 8]), [1, invalid]);
    assert_eq!(kinds(&[4, 99]), [unknown, unknown]);
    assert_eq!(kinds(&[5]), [0x8000_0002]);
    // Contexts need structured replies.
    assert_eq!(kinds(&[9, 10]), [invalid, invalid]);
}
