//! Asking, and how that ended.

use std::io::{self, Read, Write};

use bytes::Bytes;
use hyper::Method;
use serde_json::{Map, Value, json};

use crate::adapters::config::{AskOptions, AskPlan, Question};
use crate::adapters::http::{self, Answered, AskError, Remote};
use crate::ports::{Consistency, OpKind};

use super::super::command::Stopped;
use super::super::errors::RunError;
use super::answers::{
    ClusterAnswer, DataAnswer, NodesAnswer, Quorum, Refusal, StopAnswer, Verdict, taken,
};
use super::shown;

/// No node takes a longer value, whatever its configuration.
const MAX_VALUE_BYTES: u64 = 16 * 1_024 * 1_024;

/// Asks a node and shows what it answers; on a terminal, so that nothing in it can steer that.
pub(in super::super) async fn ask(
    plan: AskPlan,
    node: Remote,
    is_terminal: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), Stopped> {
    let asking = Asking { node, json: plan.json, is_terminal, out };
    match plan.question {
        Question::Get { key, options } => asking.data(OpKind::Get, &key, None, options).await,
        Question::Add { key, value, options } => {
            let value = value.map_or_else(read_value, Ok)?;
            asking.data(OpKind::Add, &key, Some(value), options).await
        }
        Question::Remove { key, options } => asking.data(OpKind::Remove, &key, None, options).await,
        Question::Nodes => asking.nodes().await,
        Question::Cluster => asking.cluster().await,
        Question::Status => asking.status().await,
    }
}

/// The value on standard input, as it is.
fn read_value() -> Result<String, RunError> {
    let mut text = Vec::new();
    let read = io::stdin().lock().take(MAX_VALUE_BYTES + 1).read_to_end(&mut text);
    read.map_err(|error| RunError::Command(format!("standard input: {error}")))?;
    if text.len() as u64 > MAX_VALUE_BYTES {
        let wrong = format!(
            "standard input is longer than {MAX_VALUE_BYTES} bytes, the longest value there is"
        );
        return Err(RunError::Usage(wrong));
    }
    String::from_utf8(text).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let wrong = format!("standard input is not UTF-8 text, from byte {at} on; values are text: encode it, as base64 for example");
        RunError::Usage(wrong)
    })
}

/// A question to a node, and where the answer goes.
struct Asking<'a> {
    node: Remote,
    json: bool,
    is_terminal: bool,
    out: &'a mut (dyn Write + Send),
}

impl Asking<'_> {
    async fn data(
        self,
        call: OpKind,
        key: &str,
        value: Option<String>,
        options: AskOptions,
    ) -> Result<(), Stopped> {
        let method = if call == OpKind::Remove { Method::DELETE } else { Method::POST };
        let path = format!("/{}", call.as_str());
        let answered = self.ask(method, &path, body(key, value, options)).await?;
        let answer: DataAnswer = taken(&answered)?;
        let ended = verdict(call, key, &answer);
        let shown =
            if self.json { self.show_json(&answered.body) } else { self.show(call, &answer) };
        match shown {
            // Who has seen enough is told how it ended all the same.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => ended,
        }
    }

    fn show_json(self, body: &[u8]) -> io::Result<()> {
        let json = String::from_utf8_lossy(body);
        let shown =
            if self.is_terminal { shown::harmless_json(&json) } else { json.as_ref().into() };
        writeln!(self.out, "{shown}")
    }

    /// What people want of it; nothing, if there is nothing.
    fn show(self, call: OpKind, answer: &DataAnswer) -> io::Result<()> {
        match (call, &answer.value, &answer.timestamp) {
            (OpKind::Get, Some(value), _) if self.is_terminal => {
                writeln!(self.out, "{}", shown::harmless(value))
            }
            (OpKind::Get, Some(value), _) => self.out.write_all(value.as_bytes()),
            (OpKind::Add, _, Some(timestamp)) if answer.status == Verdict::Success => {
                let Quorum { required, achieved } = answer.quorum;
                let timestamp = shown::harmless(timestamp);
                writeln!(
                    self.out,
                    "stored at {timestamp}, on {achieved} nodes of {required} required"
                )
            }
            (OpKind::Remove, _, Some(_)) if answer.status == Verdict::Success => {
                writeln!(self.out, "removed")
            }
            _ => Ok(()),
        }
    }

    async fn nodes(self) -> Result<(), Stopped> {
        let answered = self.ask(Method::GET, "/nodes", Bytes::new()).await?;
        let answer: NodesAnswer = taken(&answered)?;
        if self.json {
            self.show_json(&answered.body)?;
        } else {
            for addr in &answer.nodes {
                writeln!(self.out, "{}", shown::harmless(addr))?;
            }
        }
        Ok(())
    }

    async fn cluster(self) -> Result<(), Stopped> {
        let answered = self.ask(Method::GET, "/cluster", Bytes::new()).await?;
        let answer: ClusterAnswer = taken(&answered)?;
        if self.json {
            self.show_json(&answered.body)?;
        } else {
            self.out.write_all(shown::cluster(&answer).as_bytes())?;
        }
        Ok(())
    }

    async fn status(self) -> Result<(), Stopped> {
        let ready = self.ask(Method::GET, "/readyz", Bytes::new()).await?;
        let cluster = self.ask(Method::GET, "/cluster", Bytes::new()).await?;
        let stop = self.ask(Method::GET, "/cluster/safe-to-stop", Bytes::new()).await?;
        let not_ready = match serde_json::from_slice::<Refusal>(&ready.body) {
            Ok(said) if !ready.status.is_success() => Some(said.message),
            _ => taken::<Refusal>(&ready).map(|_| None)?,
        };
        let (seen, stopping): (ClusterAnswer, StopAnswer) = (taken(&cluster)?, taken(&stop)?);
        if self.json {
            let [cluster, stop] = [cluster, stop].map(|answered| parsed(&answered));
            let is_ready = not_ready.is_none();
            let all = json!({
                "ready": is_ready, "not_ready": &not_ready, "cluster": cluster, "safe_to_stop": stop,
            });
            self.show_json(all.to_string().as_bytes())?;
        } else {
            let text = shown::status(self.node.addr(), not_ready.as_deref(), &seen, &stopping);
            self.out.write_all(text.as_bytes())?;
        }
        let Some(why) = not_ready else { return Ok(()) };
        let why = shown::harmless(&why);
        Err(RunError::Command(format!("the node is not ready: {why}")).into())
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Answered, RunError> {
        http::ask(&self.node, method, path, body).await.map_err(|error| match error {
            AskError::Unreachable { .. } => RunError::Unreachable(error.to_string()),
            AskError::BrokenOff { .. } => RunError::Command(error.to_string()),
        })
    }
}

/// It was taken apart before, so it is one.
fn parsed(answered: &Answered) -> Value {
    serde_json::from_slice(&answered.body).unwrap_or_default()
}

fn body(key: &str, value: Option<String>, options: AskOptions) -> Bytes {
    let mut fields = Map::new();
    fields.insert("key".into(), key.into());
    if let Some(value) = value {
        fields.insert("value".into(), value.into());
    }
    if let Some(quorum) = options.quorum {
        let quorum = quorum.to_string();
        // A number is one in JSON, too.
        let number = quorum.parse::<u32>().map(Value::from);
        fields.insert("quorum".into(), number.unwrap_or_else(|_| quorum.into()));
    }
    if let Some(timeout) = options.timeout {
        let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        fields.insert("timeout_ms".into(), ms.into());
    }
    if options.consistency == Consistency::Confirmed {
        fields.insert("consistency".into(), "confirmed".into());
    }
    Value::Object(fields).to_string().into()
}

/// How a command on data ends, once what there is was shown.
fn verdict(call: OpKind, key: &str, answer: &DataAnswer) -> Result<(), Stopped> {
    if answer.status == Verdict::Partial {
        return Err(RunError::QuorumMissed(shown::harmless(&answer.message).into_owned()).into());
    }
    if call != OpKind::Add && answer.timestamp.is_none() {
        return Err(RunError::NoSuchKey(format!("no such key: {key:?}")).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::QuorumSpec;
    use std::time::Duration;

    #[test]
    fn a_body_says_what_was_given_and_no_more() {
        let plain = body("k", None, AskOptions::default());
        assert_eq!(plain, r#"{"key":"k"}"#);
        let options = AskOptions {
            quorum: Some("3".parse().unwrap()),
            timeout: Some(Duration::from_millis(250)),
            consistency: Consistency::Confirmed,
        };
        let all: Value = serde_json::from_slice(&body("k", Some("\"v".into()), options)).unwrap();
        let expected = json!({
            "key": "k", "value": "\"v", "quorum": 3, "timeout_ms": 250, "consistency": "confirmed",
        });
        assert_eq!(all, expected);
        let all = AskOptions { quorum: Some(QuorumSpec::All), ..AskOptions::default() };
        let said: Value = serde_json::from_slice(&body("k", None, all)).unwrap();
        assert_eq!(said["quorum"], "all");
    }
}
