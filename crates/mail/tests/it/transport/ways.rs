//! What can be wrong before a mail is begun: TLS, the login, the pool, and the way to the server.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use voiceai_egress::Rule;
use voiceai_mail::transport::{
    Outcome, Outgoing, Phase, Reason, SmtpSettings, SmtpTransport, TlsMode, Transport as _,
};
use voiceai_testkit::{
    Act, Certificate, SinkOptions, SinkTls, SmtpSink, Squid, SquidOptions, Step, wait_until,
};

use super::faults::{bounded, mail, provider_fault, timed_out};
use super::support::{
    Counting, LIMIT, accepted, authority, hasty, login, mail_to, rule, send, settings, through, transport,
};

// ---- TLS

async fn sink_with(tls: SinkTls) -> SmtpSink {
    SmtpSink::with(SinkOptions { tls, ..SinkOptions::default() }).await
}

#[tokio::test]
async fn tls_of_both_kinds_is_verified_and_recorded() {
    let certificate = Certificate::localhost();
    let (_folder, ca_file) = authority(&certificate);
    for (tls, mode) in [
        (SinkTls::Starttls(certificate.clone()), TlsMode::Starttls),
        (SinkTls::Implicit(certificate.clone()), TlsMode::Implicit),
    ] {
        let sink = sink_with(tls).await;
        let smtp =
            transport(&SmtpSettings { tls: mode, ca_file: Some(ca_file.clone()), ..settings(sink.port()) });
        for _ in 0..2 {
            let outcome = send(&smtp, &mail()).await;
            assert!(
                accepted(&outcome).tls.as_deref().is_some_and(|tls| tls.starts_with("TLSv1.3")),
                "{outcome:?}"
            );
        }
        assert!(sink.received().iter().all(|mail| mail.secured));
        assert_eq!(sink.connections(), 1);
        // An authority that nobody vouches for, and the switch for a developer's mail catcher.
        let strange = transport(&SmtpSettings { tls: mode, ..settings(sink.port()) });
        let outcome = send(&strange, &mail()).await;
        assert!(provider_fault(&outcome).text.contains("SMTP_CA_FILE"), "{outcome:?}");
        let careless = transport(&SmtpSettings { tls: mode, skip_verify: true, ..settings(sink.port()) });
        accepted(&send(&careless, &mail()).await);
    }
}

#[tokio::test]
async fn certificates_that_do_not_hold_are_named() {
    for (certificate, told) in [
        (Certificate::expired(), "renew the server's certificate"),
        (Certificate::named(&["mail.example.com"]), "set SMTP_HOST to a name"),
    ] {
        let (_folder, ca_file) = authority(&certificate);
        for (tls, mode) in [
            (SinkTls::Starttls(certificate.clone()), TlsMode::Starttls),
            (SinkTls::Implicit(certificate.clone()), TlsMode::Implicit),
        ] {
            let sink = sink_with(tls).await;
            let smtp = transport(&SmtpSettings {
                tls: mode,
                ca_file: Some(ca_file.clone()),
                ..settings(sink.port())
            });
            let outcome = send(&smtp, &mail()).await;
            let summary = provider_fault(&outcome);
            assert_eq!((summary.phase, summary.reason), (Phase::Starttls, Reason::Tls));
            assert!(summary.text.contains(told), "{}", summary.text);
            assert!(!sink.commands().contains(&"MAIL".to_owned()));
        }
    }
}

#[tokio::test]
async fn mail_and_passwords_do_not_go_out_in_clear() {
    // STARTTLS was taken out of the offer on the way, or is refused.
    let certificate = Certificate::localhost();
    let (_folder, ca_file) = authority(&certificate);
    let options = SinkOptions { login: Some(("u".into(), "p-canary".into())), ..SinkOptions::default() };
    let stripped = SmtpSink::with(options.clone()).await;
    let refusing =
        SmtpSink::with(SinkOptions { tls: SinkTls::Starttls(certificate.clone()), ..options }).await;
    refusing.always(Step::Starttls, Act::reply("454 4.7.0 TLS is not available"));
    for sink in [stripped, refusing] {
        let settings = SmtpSettings {
            tls: TlsMode::Starttls,
            ca_file: Some(ca_file.clone()),
            credentials: login("u", "p-canary"),
            ..settings(sink.port())
        };
        let outcome = send(&transport(&settings), &mail()).await;
        let summary = provider_fault(&outcome);
        assert_eq!((summary.phase, summary.reason), (Phase::Starttls, Reason::Tls));
        for verb in ["AUTH", "MAIL"] {
            assert!(!sink.commands().contains(&verb.to_owned()), "{verb} in clear");
        }
    }
}

#[tokio::test]
async fn what_is_said_in_clear_before_the_handshake_is_not_believed() {
    let certificate = Certificate::localhost();
    let (_folder, ca_file) = authority(&certificate);
    let sink = sink_with(SinkTls::Starttls(certificate)).await;
    let smtp =
        transport(&SmtpSettings { tls: TlsMode::Starttls, ca_file: Some(ca_file), ..hasty(sink.port()) });
    // The answers of a whole conversation, put into the packet of the answer to STARTTLS.
    let injected =
        b"220 go ahead\r\n250-evil\r\n250 AUTH PLAIN\r\n235 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n250 ok\r\n";
    sink.once(Step::Starttls, Act::Bytes(injected.to_vec()));
    let outcome = send(&smtp, &mail()).await;
    let summary = provider_fault(&outcome);
    assert!(summary.reason == Reason::Tls && summary.text.contains("said in clear"), "{summary:?}");
    assert_eq!(sink.count(), 0);
}

#[tokio::test]
async fn a_handshake_that_stalls_or_breaks_ends() {
    let certificate = Certificate::localhost();
    let (_folder, ca_file) = authority(&certificate);
    for (tls, mode) in [
        (SinkTls::Starttls(certificate.clone()), TlsMode::Starttls),
        (SinkTls::Implicit(certificate.clone()), TlsMode::Implicit),
    ] {
        let sink = sink_with(tls).await;
        let smtp =
            transport(&SmtpSettings { tls: mode, ca_file: Some(ca_file.clone()), ..hasty(sink.port()) });
        sink.once(Step::Handshake, Act::Hang);
        assert_eq!(timed_out(&bounded(&smtp, &mail(), 2).await).phase, Phase::Starttls);
        sink.once(Step::Handshake, Act::Drop);
        assert_eq!(provider_fault(&send(&smtp, &mail()).await).reason, Reason::Tls);
        if mode == TlsMode::Starttls {
            sink.once(Step::Starttls, Act::Hang);
            assert_eq!(timed_out(&bounded(&smtp, &mail(), 1).await).phase, Phase::Starttls);
        }
        accepted(&send(&smtp, &mail()).await);
    }
    // TLS is begun with a server that speaks first, in clear.
    let plain = SmtpSink::start().await;
    let smtp = transport(&SmtpSettings { tls: TlsMode::Implicit, ..hasty(plain.port()) });
    let outcome = send(&smtp, &mail()).await;
    assert!(provider_fault(&outcome).text.contains("SMTP_TLS=starttls"), "{outcome:?}");
}

// ---- login

async fn guarded(mechanisms: &[&'static str]) -> SmtpSink {
    let login = Some(("mailer".to_owned(), "first".to_owned()));
    SmtpSink::with(SinkOptions { login, mechanisms: mechanisms.to_vec(), ..SinkOptions::default() }).await
}

#[tokio::test]
async fn login_by_each_mechanism() {
    for mechanisms in [&["PLAIN", "LOGIN"][..], &["LOGIN"], &["CRAM-MD5", "login"]] {
        let sink = guarded(mechanisms).await;
        let smtp =
            transport(&SmtpSettings { credentials: login("mailer", "first"), ..settings(sink.port()) });
        accepted(&send(&smtp, &mail()).await);
        assert_eq!(sink.received()[0].user.as_deref(), Some("mailer"), "{mechanisms:?}");
    }
}

#[tokio::test]
async fn a_login_that_fails_pauses_the_provider_and_shows_no_password() {
    let sink = guarded(&["PLAIN"]).await;
    let wrong =
        transport(&SmtpSettings { credentials: login("mailer", "wrong-canary"), ..settings(sink.port()) });
    let outcome = send(&wrong, &mail()).await;
    let summary = provider_fault(&outcome);
    assert_eq!(
        (summary.phase, summary.reason, summary.code),
        (Phase::Auth, Reason::Authentication, Some(535))
    );
    assert!(!format!("{outcome:?}").contains("canary"));
    let mismatch = guarded(&["GSSAPI", "CRAM-MD5"]).await;
    let smtp =
        transport(&SmtpSettings { credentials: login("mailer", "first"), ..settings(mismatch.port()) });
    let outcome = send(&smtp, &mail()).await;
    let summary = provider_fault(&outcome);
    assert!(summary.phase == Phase::Auth && summary.text.contains("GSSAPI, CRAM-MD5"), "{summary:?}");
    let nobody = transport(&settings(sink.port()));
    assert_eq!(provider_fault(&send(&nobody, &mail()).await).reason, Reason::Authentication);
}

#[tokio::test]
async fn a_password_that_rotates_is_used_from_the_next_mail_on() {
    let sink = guarded(&["PLAIN"]).await;
    let current = Arc::new(Mutex::new(login("mailer", "first")));
    let source = Arc::clone(&current);
    let smtp = SmtpTransport::new(
        &settings(sink.port()),
        Rule::default(),
        Arc::new(move || source.lock().expect("no panic").clone()),
    )
    .expect("sound");
    accepted(&send(&smtp, &mail()).await);
    accepted(&send(&smtp, &mail()).await);
    assert_eq!(sink.connections(), 1);
    sink.login("mailer", "second");
    *current.lock().expect("no panic") = login("mailer", "second");
    accepted(&send(&smtp, &mail()).await);
    assert_eq!(
        (sink.connections(), sink.count()),
        (2, 3),
        "the connection of the old password is not used again"
    );
}

#[tokio::test]
async fn a_login_that_is_refused_asks_for_newer_credentials_and_costs_no_attempt() {
    let sink = guarded(&["PLAIN"]).await;
    sink.login("mailer", "second");
    let current = Arc::new(Mutex::new(login("mailer", "first")));
    let (source, store) = (Arc::clone(&current), Arc::clone(&current));
    let smtp = SmtpTransport::new(
        &settings(sink.port()),
        Rule::default(),
        Arc::new(move || source.lock().expect("no panic").clone()),
    )
    .expect("sound")
    .refreshing(Arc::new(move || {
        *store.lock().expect("no panic") = login("mailer", "second");
        Box::pin(std::future::ready(()))
    }));
    accepted(&send(&smtp, &mail()).await);
    assert_eq!(sink.connections(), 2);
    // What is refused still is a fault of the provider, at once.
    sink.login("mailer", "third");
    smtp.close().await;
    assert_eq!(provider_fault(&send(&smtp, &mail()).await).code, Some(535));
    assert_eq!(sink.connections(), 3);
}

// ---- the pool

#[tokio::test]
async fn connections_are_shared_bounded_and_closed() {
    let sink = SmtpSink::start().await;
    let few = SmtpSettings {
        connections_max: 2,
        messages_max: 3,
        idle: Duration::from_millis(300),
        ..settings(sink.port())
    };
    let smtp = transport(&few);
    sink.always(Step::Dot, Act::Late(Duration::from_millis(20)));
    let mails: Vec<Outgoing> = (0..12).map(|number| mail_to(&format!("kim{number}@example.com"))).collect();
    let outcomes = futures_util::future::join_all(mails.iter().map(|mail| send(&smtp, mail))).await;
    outcomes.iter().for_each(|outcome| drop(accepted(outcome).clone()));
    assert_eq!(sink.count(), 12);
    assert_eq!(sink.connections(), 4, "three mails over each connection");
    accepted(&send(&smtp, &mail()).await);
    assert_eq!(smtp.idle_connections(), 1);
    wait_until(Duration::from_secs(10), "idle connections are closed", async || sink.open() == 0).await;
    assert_eq!(smtp.idle_connections(), 0);
    accepted(&send(&smtp, &mail()).await);
    smtp.close().await;
    wait_until(Duration::from_secs(10), "closing takes leave", async || sink.open() == 0).await;
}

#[tokio::test]
async fn the_stage_is_reached_after_the_recipient_and_before_the_content() {
    let sink = SmtpSink::start().await;
    let smtp = transport(&settings(sink.port()));
    for step in [Step::Mail, Step::Rcpt] {
        sink.once(step, Act::reply("451 4.3.0 not now"));
        let stage = Counting::default();
        let _ = smtp.send(&mail(), &stage).await;
        assert_eq!(stage.count(), 0, "{step:?}");
    }
    let refusing = Counting { refuse: true, ..Counting::default() };
    assert!(matches!(smtp.send(&mail(), &refusing).await, Outcome::Withdrawn { .. }));
    assert!(!sink.commands().contains(&"DATA".to_owned()), "no content was begun");
    accepted(&send(&smtp, &mail()).await);
}

// ---- the way there

#[tokio::test]
async fn a_server_that_is_not_there() {
    let port = voiceai_testkit::Port::reserve();
    let refused = send(&transport(&hasty(port.number())), &mail()).await;
    assert_eq!(provider_fault(&refused).reason, Reason::Network);
    let nowhere = SmtpSettings {
        host: "no-such-host.invalid".into(),
        tls: TlsMode::Starttls,
        phase_limit: Duration::from_secs(10),
        ..hasty(25)
    };
    let outcome = send(&transport(&nowhere), &mail()).await;
    assert_eq!(provider_fault(&outcome).reason, Reason::Dns, "{outcome:?}");
    // An address of TEST-NET-1 answers nothing, or cannot be reached from here at all.
    let hole = SmtpSettings { host: "192.0.2.1".into(), tls: TlsMode::Starttls, ..hasty(587) };
    let started = Instant::now();
    let outcome = send(&transport(&hole), &mail()).await;
    assert!(matches!(outcome, Outcome::TimedOut { .. } | Outcome::ProviderFault { .. }), "{outcome:?}");
    assert!(outcome.summary().phase == Phase::Connect && started.elapsed() < LIMIT + Duration::from_secs(2));
}

#[tokio::test]
async fn a_listener_that_never_answers() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    // Connections are taken by the kernel and read by nobody.
    let outcome = bounded(&transport(&hasty(port)), &mail(), 1).await;
    assert_eq!(timed_out(&outcome).phase, Phase::Connect);
}

#[tokio::test]
async fn a_proxy_that_stands_in_the_way() {
    let sink = SmtpSink::start().await;
    let by_way_of = |url: String| {
        let way = rule(&[("HTTPS_PROXY", url)]);
        through(&settings(sink.port()), way)
    };
    let closed = Squid::start(SquidOptions { ports: vec![sink.port() + 1], login: None }).await;
    let outcome = send(&by_way_of(closed.url()), &mail()).await;
    let summary = provider_fault(&outcome);
    assert_eq!((summary.phase, summary.reason), (Phase::Connect, Reason::Proxy));
    assert!(summary.text.contains("403") && summary.text.contains("ACL"), "{summary:?}");

    let guarded = Squid::start(SquidOptions { ports: Vec::new(), login: Some(("ops", "secret")) }).await;
    let bare = format!("http://127.0.0.1:{}", guarded.port());
    let outcome = send(&by_way_of(bare), &mail()).await;
    assert!(provider_fault(&outcome).text.contains("407"), "{outcome:?}");
    accepted(&send(&by_way_of(guarded.url()), &mail()).await);
    // NO_PROXY leads around it.
    let around = rule(&[("HTTPS_PROXY", closed.url()), ("NO_PROXY", "127.0.0.1".to_owned())]);
    accepted(&send(&through(&settings(sink.port()), around), &mail()).await);

    guarded.pause();
    let slow = through(&hasty(sink.port()), rule(&[("HTTP_PROXY", guarded.url())]));
    let outcome = bounded(&slow, &mail(), 1).await;
    assert!(timed_out(&outcome).text.contains("through the proxy"), "{outcome:?}");
    guarded.resume();
}

#[tokio::test]
async fn a_proxy_that_sends_the_greeting_along_with_its_answer() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let proxy = listener.local_addr().expect("bound").port();
    let sink = SmtpSink::start().await;
    let target = sink.address();
    let server = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.expect("a client");
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(client.read_u8().await.expect("a request"));
        }
        let mut upstream = tokio::net::TcpStream::connect(target).await.expect("the sink");
        let mut greeting = [0; 128];
        let count = upstream.read(&mut greeting).await.expect("a greeting");
        let mut answer = b"HTTP/1.1 200 Connection established\r\n\r\n".to_vec();
        answer.extend_from_slice(&greeting[..count]);
        client.write_all(&answer).await.expect("an answer");
        let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
    });
    let way = rule(&[("HTTPS_PROXY", format!("http://127.0.0.1:{proxy}"))]);
    accepted(&send(&through(&settings(sink.port()), way), &mail()).await);
    server.abort();
}
