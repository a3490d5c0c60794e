//! What lies in `packaging`, as far as it can be tried without a container: the nodes are those of
//! the compose file and of the Kubernetes manifest, as processes with their settings.
//!
//! Only hosts, ports and paths are replaced. That the files are well-formed is what `packaging/check`
//! says; here it is that they fit the binary and each other.

use std::collections::BTreeMap;
use std::process::Command;

use serde::Deserialize;
use serde_yaml::Value;

use super::node::{Node, Setup, free_port};
use super::ring;

const DOCKERFILE: &str = include_str!("../../../packaging/Dockerfile");
const COMPOSE: &str = include_str!("../../../packaging/compose.yml");
const MANIFEST: &str = include_str!("../../../packaging/kubernetes/lally.yml");

const PAGE: &str = include_str!("../../../docs/installation.md");

type Environment = BTreeMap<String, String>;

/// The words behind an instruction of the Dockerfile, of its last stage.
fn instruction(name: &str) -> String {
    let joined = DOCKERFILE.replace("\\\n", " ");
    let mut lines = joined.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    lines.next_back().unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
}

/// The same in its exec form: the words as JSON.
fn exec(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn image_environment() -> Environment {
    let pairs = instruction("ENV");
    pairs.split_whitespace().map(|pair| pair.split_once('=').unwrap()).map(own).collect()
}

fn own((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// The environment of each node of the compose file, by the node's name.
fn compose_environments() -> BTreeMap<String, Environment> {
    let mut compose: Value = serde_yaml::from_str(COMPOSE).unwrap();
    compose.apply_merge().unwrap();
    for service in compose["services"].as_mapping_mut().unwrap().values_mut() {
        service.apply_merge().unwrap();
        service["environment"].apply_merge().unwrap();
    }
    let services = compose["services"].as_mapping().unwrap();
    let of_service = |(name, service): (&Value, &Value)| {
        let own = service["environment"].as_mapping().unwrap().iter();
        let own = own.map(|(name, value)| (text(name), text(value)));
        (text(name), image_environment().into_iter().chain(own).collect())
    };
    services.iter().map(of_service).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value:?}")).to_owned()
}

/// The resources of the manifest of one kind.
fn resources(kind: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(MANIFEST);
    let all = documents.map(|document| Value::deserialize(document).unwrap());
    all.filter(|resource| resource["kind"] == kind).collect()
}

/// The pod of the manifest's nodes, and its container.
fn pod() -> (Value, Value) {
    let pod = resources("StatefulSet")[0]["spec"]["template"]["spec"].clone();
    let container = pod["containers"][0].clone();
    (pod, container)
}

/// As above, of the manifest: Kubernetes puts the values of earlier variables into later ones.
fn manifest_environments() -> BTreeMap<String, Environment> {
    let set = &resources("StatefulSet")[0];
    let service = text(&set["spec"]["serviceName"]);
    let of_node = |number| {
        let name = format!("{}-{number}", text(&set["metadata"]["name"]));
        let mut environment = image_environment();
        for variable in pod().1["env"].as_sequence().unwrap() {
            let field = &variable["valueFrom"]["fieldRef"]["fieldPath"];
            let value = match field.as_str() {
                Some("metadata.name") => name.clone(),
                Some("metadata.namespace") => "default".to_owned(),
                _ => environment.iter().fold(text(&variable["value"]), |value, (name, known)| {
                    value.replace(&format!("$({name})"), known)
                }),
            };
            environment.insert(text(&variable["name"]), value);
        }
        (format!("{name}.{service}.default.svc"), environment)
    };
    (0..set["spec"]["replicas"].as_u64().unwrap()).map(of_node).collect()
}

/// Starts these nodes, each at its own port of this machine instead of its own host, and waits until
/// they are one cluster.
fn start(environments: &BTreeMap<String, Environment>) -> Vec<Node> {
    let ports: BTreeMap<_, _> = environments.keys().map(|host| (host, free_port())).collect();
    let help = Setup::new().run_command(["--help"]).stdout;
    let starting = environments.iter().map(|(host, environment)| {
        let mut setup = Setup::new().grpc_port(Some(ports[host]));
        for (name, value) in environment {
            let Some(key) = name.strip_prefix("LALLY_") else { continue };
            // One that is none is passed over in silence.
            let flag = format!("--{}", key.to_lowercase().replace('_', "-"));
            let is_flag = [" ", "["].iter().any(|end| help.contains(&format!("{flag}{end}")));
            assert!(is_flag, "{name} is no setting");
            setup = match key {
                "DATA_DIR" => setup,
                "BIND" => {
                    assert_eq!(value, "0.0.0.0", "of {host}");
                    setup.env(name, "127.0.0.1")
                }
                "ADVERTISE_ADDR" => {
                    assert_eq!(value, host, "nobody finds {host}");
                    setup.env(name, "127.0.0.1")
                }
                "SEED_NODE" => {
                    let seeds = value.split(',').map(|seed| {
                        let host = seed.strip_suffix(":50071").unwrap();
                        format!("127.0.0.1:{}", ports[&host.to_owned()])
                    });
                    setup.env(name, &seeds.collect::<Vec<_>>().join(","))
                }
                _ => setup.env(name, value),
            };
        }
        setup.start()
    });
    let nodes: Vec<_> = starting.collect();
    ring::wait_whole(&nodes);
    nodes
}

/// They are one cluster, whoever is asked, and lose nothing with a disk.
fn take_writes_and_the_loss_of_a_disk(environments: &BTreeMap<String, Environment>) {
    let mut nodes = start(environments);
    assert_eq!(nodes.len(), 3);
    let written = nodes[0].client().add("k", "v").succeeded();
    assert_eq!(written.quorum().0, 2, "more than half of the nodes");
    nodes[0].kill9();
    std::fs::remove_dir_all(nodes[0].setup().data_dir()).unwrap();
    nodes[0].restart();
    nodes[0].wait_ready();
    ring::wait_value(&nodes[0], "k", Some("v"));
}

#[test]
fn the_nodes_of_the_compose_file_are_one_cluster() {
    take_writes_and_the_loss_of_a_disk(&compose_environments());
}

#[test]
fn the_nodes_of_the_kubernetes_manifest_are_one_cluster() {
    take_writes_and_the_loss_of_a_disk(&manifest_environments());
}

/// A chart with one replica names it to itself.
#[test]
fn a_node_whose_only_seed_is_itself_serves() {
    let port = free_port();
    let node = Setup::new().grpc_port(Some(port)).seed(format!("127.0.0.1:{port}")).start_ready();
    node.client().add("k", "v").succeeded();
}

#[test]
fn the_health_check_of_the_image_asks_whether_the_node_answers_and_not_whether_it_is_ready() {
    let check = instruction("HEALTHCHECK");
    let check = exec(check.split_once("CMD ").unwrap().1);
    assert_eq!(check[0], "/usr/bin/lally");
    let passes = |http_port: u16| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lally"));
        command.args(&check[1..]).envs(image_environment());
        // As the node would be told, too, if it had another one.
        command.env("LALLY_HTTP_PORT", http_port.to_string());
        command.output().unwrap().status.success()
    };
    let waits = Setup::new().seed(format!("127.0.0.1:{}", free_port())).start();
    assert!(waits.readiness().is_err());
    assert!(passes(waits.http().port()));
    assert!(!passes(free_port()));
}

#[test]
fn the_image_and_the_manifest_are_about_the_same_program() {
    let (pod, container) = pod();
    let volume = instruction("VOLUME");
    assert_eq!(exec(&instruction("ENTRYPOINT")), ["/usr/bin/lally"]);
    assert_eq!(instruction("STOPSIGNAL"), "SIGTERM");
    assert!(image_environment()["LALLY_DATA_DIR"].starts_with(&format!("{volume}/")));
    assert_eq!(container["volumeMounts"][0]["mountPath"], volume.as_str());
    let security = &pod["securityContext"];
    let user = security["runAsUser"].as_u64().unwrap();
    assert_eq!(instruction("USER"), format!("{user}:{}", security["runAsGroup"].as_u64().unwrap()));
    assert!(user > 0 && security["runAsNonRoot"] == true && security["fsGroup"] == user);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    let ports = container["ports"].as_sequence().unwrap().iter();
    let ports: Vec<_> =
        ports.map(|port| port["containerPort"].as_u64().unwrap().to_string()).collect();
    assert_eq!(instruction("EXPOSE"), ports.join(" "));
    let version = format!("lally:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(container["image"], version.as_str());
    assert_eq!(COMPOSE.matches(&format!("image: {version}\n")).count(), 1);
}

#[test]
fn kubernetes_is_told_what_nodes_need_of_it() {
    let (pod, container) = pod();
    // LALLY_PORT and the like are not settings.
    assert_eq!(pod["enableServiceLinks"], false);
    // A graceful stop takes up to ten seconds, after the three in which clients are sent elsewhere.
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() >= 10 + 3 + 5);
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"]["path"], path);
    }
    let set = &resources("StatefulSet")[0];
    // None is ready before the others are there.
    assert_eq!(set["spec"]["podManagementPolicy"], "Parallel");
    let services = resources("Service");
    let peers =
        services.iter().find(|service| service["metadata"]["name"] == set["spec"]["serviceName"]);
    let peers = peers.expect("nobody gives the nodes names");
    assert_eq!(peers["spec"]["clusterIP"], "None");
    assert_eq!(peers["spec"]["publishNotReadyAddresses"], true);
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    let selected: Vec<_> = services.iter().map(|service| &service["spec"]["selector"]).collect();
    assert_eq!(selected, [labels, labels]);
    assert_eq!(resources("PodDisruptionBudget")[0]["spec"]["selector"]["matchLabels"], *labels);
}

#[test]
fn the_files_and_versions_that_the_installation_page_names_are_there() {
    let is_end = |c: char| c.is_whitespace() || "`,;:)]".contains(c);
    let named: Vec<_> = PAGE.match_indices("packaging/").map(|(at, _)| &PAGE[at..]).collect();
    let paths: std::collections::BTreeSet<_> =
        named.iter().filter_map(|text| text.split(is_end).next()).collect();
    assert!(paths.len() >= 6, "{paths:?}");
    for path in paths {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(root.join(path).exists(), "there is no {path}");
    }
    let version = env!("CARGO_PKG_VERSION");
    assert!(PAGE.contains(&format!("--tag lally:{version} ")));
    assert_eq!(PAGE.matches("lally:0").count(), PAGE.matches(&format!("lally:{version}")).count());
    assert!(PAGE.contains(&format!("lally_{version}-1_amd64.deb")));
    let chart = include_str!("../../../packaging/helm/lally/Chart.yaml");
    assert!(chart.contains(&format!("\nappVersion: {version}\n")), "{chart}");
}
