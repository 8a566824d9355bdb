//! How a NAT behaves, as `status` and `doctor` show it.

use serde_json::{Value, json};

use crate::wire::nat::{Filtering, Mapping, NatBehaviour};
use crate::wire::rendezvous::Routing;

/// Routing information, with the NAT's behaviour as `nat`.
pub(crate) fn routing_json(routing: &Routing) -> Value {
    let mut value = json!(routing);
    value["nat"] = json!(routing.nat.map(behaviour_json));
    value
}

/// For programs.
pub(crate) fn behaviour_json(nat: NatBehaviour) -> Value {
    json!({
        "mapping": nat.mapping.map(Mapping::as_str),
        "filtering": nat.filtering.map(Filtering::as_str),
        "keeps_port": nat.keeps_port,
    })
}
