use super::*;
use cni::json;

fn plan(text: &str) -> Result<Plan, Vec<(String, String)>> {
    let conf: Conf = json::read(text).unwrap();
    let pairs = |faults: Faults| {
        faults
            .into_iter()
            .map(|it| (it.key, it.error.msg))
            .collect()
    };
    Plan::new(&conf).map_err(pairs)
}

fn numbers(rate: u64, burst: Option<u64>) -> (u64, u32, u32) {
    let Rate {
        bytes,
        buffer,
        limit,
    } = Limit { rate, burst }.numbers(1500);
    (bytes, buffer, limit)
}

#[test]
fn a_requested_burst_has_the_numbers_of_the_go_plugin() {
    assert_eq!(numbers(8, Some(8)), (1, 15_625_000, 1));
    assert_eq!(numbers(16, Some(8)), (2, 7_812_500, 1));
    assert_eq!(numbers(8000, Some(80)), (1000, 156_250, 35));
    assert_eq!(
        numbers(1_000_000, Some(2_000_000)),
        (125_000, 31_250_000, 253_125)
    );
    for (rate, burst) in [
        (8000, 80),
        (3_000_000, 4_000_000),
        (1_000_000_000, 8_000_000),
    ] {
        let limit = Limit {
            rate,
            burst: Some(burst),
        };
        assert_eq!(limit.numbers(1500), limit.numbers_of_go(burst));
    }
}

#[test]
fn an_unlimited_burst_is_what_the_rate_sends_in_25_ms_or_a_packet() {
    assert_eq!(numbers(80_000_000, None), (10_000_000, 390_625, 500_000));
    assert_eq!(numbers(100_000, None).2, 15_640);
    let text = |burst: u64, bound: bool| {
        let text = format!(
            r#"{{"boundBurst": {bound}, "runtimeConfig": {{"bandwidth":
                {{"ingressRate": 8000000, "ingressBurst": {burst}}}}}}}"#
        );
        plan(&text).unwrap().to_pod.unwrap().burst
    };
    // kubelet and CRI-O; containerd; the most.
    for unlimited in [2_147_483_647, 4_294_967_295, 34_359_738_351] {
        assert_eq!(text(unlimited, true), None);
        assert_eq!(text(unlimited, false), Some(unlimited));
    }
    assert_eq!(text(2_147_483_646, true), Some(2_147_483_646));
    let own = plan(r#"{"egressRate": 8000, "egressBurst": 4294967295}"#).unwrap();
    assert_eq!(own.from_pod.unwrap().burst, Some(4_294_967_295));
}

#[test]
fn numbers_that_do_not_fit_are_the_largest() {
    assert_eq!(numbers(8, Some(34_359_738_351)).1, u32::MAX);
    assert_eq!(numbers(u64::MAX, Some(34_359_738_351)).2, u32::MAX);
}

#[test]
fn slow_links_have_one_queue_and_others_one_for_each_flow() {
    let of = |rate| {
        let plan = plan("{}").unwrap();
        plan.queue(&Limit { rate, burst: None }, 1500)
    };
    assert_eq!(of(999_999), Queue::Fifo);
    assert_eq!(of(1_000_000), Queue::FqCodel { target: 18_000 });
    assert_eq!(of(1_000_000_000), Queue::FqCodel { target: 5_000 });
    let off = plan(r#"{"fqCodel": false}"#).unwrap();
    let limit = Limit {
        rate: 1_000_000_000,
        burst: None,
    };
    assert_eq!(off.queue(&limit, 1500), Queue::Fifo);
}

#[test]
fn wrong_values_are_reported_with_their_keys() {
    let fault = |text: &str| plan(text).unwrap_err()[0].clone();
    let pair = |key: &str, msg: &str| (key.to_owned(), msg.to_owned());
    assert_eq!(
        fault(r#"{"ingressRate": 5}"#),
        pair("ingressBurst", "if rate is set, burst must also be set")
    );
    assert_eq!(
        fault(r#"{"egressBurst": 8}"#),
        pair("egressRate", "if burst is set, rate must also be set")
    );
    assert_eq!(
        fault(r#"{"egressRate": 8, "egressBurst": 34359738360}"#),
        pair("egressBurst", "burst cannot be more than 4GB")
    );
    assert_eq!(
        fault(r#"{"runtimeConfig": {"bandwidth": {"egressRate": 7, "egressBurst": 8}}}"#),
        pair(
            "runtimeConfig.bandwidth.egressRate",
            "rate must be at least 8 bits per second"
        )
    );
    assert_eq!(
        fault(r#"{"unshapedSubnets": ["10.0.0.0/8", "x"]}"#),
        pair(
            "unshapedSubnets[1]",
            "bad subnet \"x\" provided, details invalid CIDR address: x"
        )
    );
    let both = r#"{"shapedSubnets": ["10.0.0.0/8"], "unshapedSubnets": ["fd00::/8"]}"#;
    assert!(fault(both).1.contains("cannot be both specified"));
}

#[test]
fn own_rates_replace_the_runtimes_and_own_subnets_do_not() {
    let text = r#"{"unshapedSubnets": ["10.0.0.0/8"],
        "runtimeConfig": {"bandwidth": {"ingressRate": 8000, "ingressBurst": 80}}}"#;
    let shared = plan(text).unwrap();
    assert!(shared.to_pod.is_some() && shared.from_pod.is_none());
    assert_eq!((shared.shaped, shared.subnets.len()), (Shaped::Unless, 1));
    let own = plan(
        r#"{"egressRate": 8000, "egressBurst": 80,
            "runtimeConfig": {"bandwidth": {"ingressRate": 8000, "ingressBurst": 80}}}"#,
    );
    let own = own.unwrap();
    assert!(own.to_pod.is_none() && own.from_pod.is_some());
    assert_eq!(own.shaped, Shaped::All);
}
