//! How long instances of services stay: announcing, renewing, expiring.
//!
//! Owns: [`Leases`], the renewals, which only the metadata group's leader knows and only in memory. Never: what is announced; that changes
//! by commands (`registry`).
//!
//! A node that becomes the leader knows of no renewal: it gives every lease its whole duration from then on.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_proto::internal::metadata_command::Command;
use highwater_proto::internal::{EndLeases, EndedLease, GrantLease};
use highwater_proto::v1;

use super::METADATA_GROUP;
use super::commands::command;
use super::node::Node;
use super::registry::{Lease, Registry, check_key, checked};
use crate::error::BrokerError;
use crate::replica::PartitionHandle;

/// Pause between two looks for leases that are over.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// The most that a lease gets older between two looks or renewals: while this node stood still it could hear no renewal.
const AGED_MAX: Duration = Duration::from_millis(500);
/// Longest wait for a command that ends leases.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// When the leases end, on the leader of the metadata group.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// The leader epoch that this was learned in.
    epoch: u64,
    /// Time that passed for leases, and the monotonic clock when it was last moved on.
    now: Duration,
    clock: Duration,
    /// By the index that names the lease.
    ends: BTreeMap<u64, Duration>,
}

impl Leases {
    /// Lets time pass. In another epoch others heard the renewals since: nothing is known any more.
    fn turn(&mut self, epoch: u64, clock: Duration) {
        let aged = clock.saturating_sub(self.clock);
        self.now += aged.min(AGED_MAX);
        self.clock = clock;
        if epoch != self.epoch {
            self.epoch = epoch;
            self.ends.clear();
        }
    }

    /// Lets a lease last for its whole duration from now on; false if it is over.
    fn renew(&mut self, epoch: u64, clock: Duration, lease: &Lease) -> bool {
        self.turn(epoch, clock);
        let end = self.ends.get(&lease.granted_index);
        let is_over = end.is_some_and(|end| *end <= self.now);
        if !is_over {
            self.ends.insert(lease.granted_index, self.now + duration_of(lease));
        }
        !is_over
    }

    /// Looks at all leases there are; those that are over. New ones begin now.
    fn over(&mut self, epoch: u64, clock: Duration, registry: &Registry) -> Vec<EndedLease> {
        self.turn(epoch, clock);
        let (mut ends, mut over) = (BTreeMap::new(), Vec::new());
        for lease in registry.leases() {
            let known = self.ends.get(&lease.granted_index).copied();
            let end = known.unwrap_or_else(|| self.now + duration_of(lease));
            ends.insert(lease.granted_index, end);
            if end <= self.now {
                over.push(EndedLease {
                    service: lease.instance.service.clone(),
                    id: lease.instance.id.clone(),
                    granted_index: lease.granted_index,
                });
            }
        }
        self.ends = ends;
        over
    }
}

fn duration_of(lease: &Lease) -> Duration {
    Duration::from_millis(lease.instance.lease_ms.into())
}

impl Node {
    /// Announces an instance of a service, under a new lease; answers with what is announced.
    pub async fn register_instance(
        &self,
        instance: v1::ServiceInstance,
    ) -> Result<v1::ServiceInstance, BrokerError> {
        self.member_view()?;
        let instance = checked(instance)?;
        let grant = GrantLease { instance: Some(instance.clone()) };
        self.propose_metadata(command(Command::GrantLease(grant))).await?;
        Ok(instance)
    }

    /// Takes an instance out; not an error if it is not there.
    pub async fn deregister_instance(
        &self,
        service: String,
        id: String,
    ) -> Result<(), BrokerError> {
        self.member_view()?;
        check_key(&service, &id)?;
        let ended = EndedLease { service, id, granted_index: 0 };
        let end = EndLeases { leases: vec![ended] };
        self.propose_metadata(command(Command::EndLeases(end))).await.map(drop)
    }

    /// Renews the lease of an instance; `NotLeader` unless this node leads the metadata group.
    pub fn renew_instance_here(&self, service: &str, id: &str) -> Result<(), BrokerError> {
        let not_leader = || {
            let leader = Some(self.metadata_leader());
            BrokerError::NotLeader { leader: leader.filter(|node| ![0, self.id()].contains(node)) }
        };
        let replica = self.settled_metadata_replica().ok_or_else(not_leader)?;
        let registry = self.inner.metadata.borrow().registry.clone();
        let unknown =
            || BrokerError::UnknownInstance { service: service.to_owned(), id: id.to_owned() };
        let service = registry.service(service);
        let lease = service.get(id).ok_or_else(unknown)?;
        let clock = self.inner.deps.clock.monotonic();
        match self.inner.leases.lock().renew(replica.leader_epoch(), clock, lease) {
            true => Ok(()),
            false => Err(unknown()),
        }
    }

    /// The metadata group's replica here, if it leads and knows what its predecessors have done.
    fn settled_metadata_replica(&self) -> Option<PartitionHandle> {
        self.inner.engine.get(METADATA_GROUP).filter(PartitionHandle::is_settled)
    }

    /// Ends leases that were not renewed, for as long as this node leads the metadata group.
    pub(super) async fn lease_loop(self) {
        loop {
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK_PAUSE) => {}
            }
            let Some(replica) = self.settled_metadata_replica() else { continue };
            let registry = self.inner.metadata.borrow().registry.clone();
            let clock = self.inner.deps.clock.monotonic();
            let over = self.inner.leases.lock().over(replica.leader_epoch(), clock, &registry);
            if over.is_empty() {
                continue;
            }
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                ended = tokio::time::timeout(END_TIMEOUT, self.end_leases(over)) => {
                    if let Ok(Err(error)) = ended {
                        tracing::debug!(%error, "leases that are over were not ended; trying again");
                    }
                }
            }
        }
    }

    async fn end_leases(&self, leases: Vec<EndedLease>) -> Result<(), BrokerError> {
        let expired: Vec<String> =
            leases.iter().map(|lease| format!("{}/{}", lease.service, lease.id)).collect();
        let end = EndLeases { leases };
        self.propose_metadata(command(Command::EndLeases(end))).await?;
        for instance in expired {
            tracing::info!(instance, "an instance of a service did not renew its lease");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
