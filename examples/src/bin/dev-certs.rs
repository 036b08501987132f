//! Certificates for trying TLS on a cluster of your own: two authorities, and what they issue for nodes and clients.
//!
//! Owns: that folder. Never: a certificate for production; the authorities' keys lie beside what they signed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use highwater_examples::env;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

/// Makes certificates for trying TLS: for nodes among themselves, for what clients connect to, and one for a client.
#[derive(Debug, Parser)]
struct Cli {
    /// Where to put them; must not exist yet.
    folder: PathBuf,
    /// How many nodes there are; their ids begin at 1.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    nodes: u64,
    /// A name or IP address that clients connect to, beside localhost, 127.0.0.1 and ::1; may be repeated.
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// How long they are good for.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3_650))]
    days: u32,
}

/// Issues certificates into a folder.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
    good_for: Duration,
}

impl Authority {
    /// One of its own name, whose certificate is there as `NAME.pem`. Its key is kept nowhere: nobody can sign more.
    fn new(folder: &Path, name: &str, good_for: Duration) -> anyhow::Result<Self> {
        let mut params = params(name, good_for)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        write(&folder.join(format!("{name}.pem")), &issuer.pem(), 0o644)?;
        Ok(Self { issuer, folder: folder.to_owned(), good_for })
    }

    /// `NAME.pem` and `NAME.key`.
    fn issue(
        &self,
        name: &str,
        names: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
    ) -> anyhow::Result<()> {
        let mut params = params(name, self.good_for)?;
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write(&self.folder.join(format!("{name}.pem")), &certificate.pem(), 0o644)?;
        write(&self.folder.join(format!("{name}.key")), &key.serialize_pem(), 0o600)
    }
}

fn params(name: &str, good_for: Duration) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, format!("highwater dev {name}"));
    let now = env::wall_clock();
    // Clocks of other machines may be behind.
    params.not_before = (now - Duration::from_secs(3_600)).into();
    params.not_after = (now + good_for).into();
    Ok(params)
}

fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

fn main() -> anyhow::Result<()> {
    let Cli { folder, nodes, hosts, days } = Cli::parse();
    if folder.exists() {
        bail!("{} is there already; name another folder, or delete it", folder.display());
    }
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let good_for = Duration::from_secs(86_400) * days;
    let both = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let among_nodes = Authority::new(&folder, "nodes-ca", good_for)?;
    for id in 1..=nodes {
        let uri = SanType::URI(format!("highwater://node/{id}").as_str().try_into()?);
        among_nodes.issue(&format!("node-{id}"), vec![uri], both.clone())?;
    }
    let with_clients = Authority::new(&folder, "clients-ca", good_for)?;
    let local = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let hosts: Vec<String> = local.into_iter().chain(hosts).collect();
    let names = CertificateParams::new(hosts)?.subject_alt_names;
    with_clients.issue("broker", names, vec![ExtendedKeyUsagePurpose::ServerAuth])?;
    with_clients.issue("client", Vec::new(), vec![ExtendedKeyUsagePurpose::ClientAuth])?;
    println!(
        "{}: good for {days} days\n  \
         among nodes   nodes-ca.pem, node-1.pem and node-1.key to node-{nodes}.key\n  \
         for clients   clients-ca.pem, broker.pem and broker.key, client.pem and client.key",
        folder.display()
    );
    Ok(())
}
