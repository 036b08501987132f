//! TopicService. Owns: the checks before anything is proposed. Never: placement, or the metadata group's rules.

use highwater_proto::v1::topic_service_server::TopicService;
use highwater_proto::{internal, v1};
use tonic::{Request, Response, Status};

use super::describe::{Wanted, replication_factor};
use super::door::{Door, refuse_internal, wire_offset};
use super::status::{CallError, from_peer};
use crate::cluster::topic_config::TopicConfig;
use crate::cluster::{self, topic_config};
use crate::error::BrokerError;

/// TopicService of one listener.
pub(super) struct Topics {
    pub(super) door: Door,
}

impl Topics {
    fn answer<T>(&self, outcome: Result<T, CallError>) -> Result<Response<T>, Status> {
        outcome.map(Response::new).map_err(|error| self.door.status(&error))
    }
}

#[tonic::async_trait]
impl TopicService for Topics {
    async fn create(
        &self,
        request: Request<v1::TopicServiceCreateRequest>,
    ) -> Result<Response<v1::TopicServiceCreateResponse>, Status> {
        let created = self.door.create_topic(request.into_inner()).await;
        self.answer(created.map(|topic| v1::TopicServiceCreateResponse { topic: Some(topic) }))
    }

    async fn update(
        &self,
        request: Request<v1::TopicServiceUpdateRequest>,
    ) -> Result<Response<v1::TopicServiceUpdateResponse>, Status> {
        let updated = self.door.update_topic(request.into_inner()).await;
        self.answer(updated.map(|topic| v1::TopicServiceUpdateResponse { topic: Some(topic) }))
    }

    async fn get(
        &self,
        request: Request<v1::TopicServiceGetRequest>,
    ) -> Result<Response<v1::TopicServiceGetResponse>, Status> {
        let topic = match self.door.topic(&request.get_ref().name, false).await {
            Ok(topic) => Ok(self.door.described(&topic, Wanted::Ends).await),
            Err(error) => Err(error.into()),
        };
        self.answer(topic.map(|topic| v1::TopicServiceGetResponse { topic: Some(topic) }))
    }

    async fn list(
        &self,
        request: Request<v1::TopicServiceListRequest>,
    ) -> Result<Response<v1::TopicServiceListResponse>, Status> {
        let with_internal = request.get_ref().include_internal;
        // "No topics" would be a wrong answer from a node that does not know yet.
        let view = self.door.node.member_view().map_err(|error| self.door.status(&error.into()))?;
        let topics = view
            .topics
            .values()
            .filter(|topic| with_internal || !topic.name.starts_with("__"))
            .map(|topic| v1::TopicSummary {
                name: topic.name.clone(),
                id: topic.id.clone(),
                partitions: u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX),
                replication_factor: replication_factor(topic),
                config: topic.config.clone(),
            })
            .collect();
        Ok(Response::new(v1::TopicServiceListResponse { topics }))
    }

    async fn delete(
        &self,
        request: Request<v1::TopicServiceDeleteRequest>,
    ) -> Result<Response<v1::TopicServiceDeleteResponse>, Status> {
        let deleted = self.door.delete_topic(request.into_inner().name).await;
        self.answer(deleted.map(|id| v1::TopicServiceDeleteResponse { id }))
    }

    async fn trim(
        &self,
        request: Request<v1::TopicServiceTrimRequest>,
    ) -> Result<Response<v1::TopicServiceTrimResponse>, Status> {
        let request = request.into_inner();
        self.answer(self.door.until_led(|| self.door.trim_at_leader(&request)).await)
    }

    async fn list_options(
        &self,
        _: Request<v1::TopicServiceListOptionsRequest>,
    ) -> Result<Response<v1::TopicServiceListOptionsResponse>, Status> {
        let options = topic_config::TOPIC_KEYS
            .iter()
            .map(|key| v1::TopicOption {
                key: key.name.to_owned(),
                default_value: key.default_value.to_owned(),
                bounds: key.bounds.to_owned(),
                description: key.description.to_owned(),
            })
            .collect();
        Ok(Response::new(v1::TopicServiceListOptionsResponse { options }))
    }
}

impl Door {
    async fn create_topic(
        &self,
        request: v1::TopicServiceCreateRequest,
    ) -> Result<v1::Topic, CallError> {
        refuse_internal(&request.name)?;
        topic_config::check(&request.config)?;
        let partitions = match request.partitions {
            0 => self.config.topics.default_partitions,
            partitions => partitions,
        };
        let replicas = request.replication_factor;
        let created =
            self.node.create_topic(&request.name, partitions, replicas, request.config).await?;
        Ok(self.described(&created, Wanted::Health).await)
    }

    async fn update_topic(
        &self,
        request: v1::TopicServiceUpdateRequest,
    ) -> Result<v1::Topic, CallError> {
        let v1::TopicServiceUpdateRequest { name, set, unset, partitions } = request;
        refuse_internal(&name)?;
        self.topic(&name, false).await?;
        topic_config::check(&set)?;
        topic_config::check_names(&unset)?;
        if let Some(both) = unset.iter().find(|key| set.contains_key(*key)) {
            return Err(BrokerError::InvalidArgument {
                field: format!("config '{both}'"),
                why: "is to be set and unset at once".to_owned(),
            }
            .into());
        }
        topic_config::check_change(&self.topic(&name, false).await?.config, &set, &unset)?;
        // What cannot be is refused before anything is changed.
        if partitions > 0 {
            cluster::check_partitions(&*self.topic(&name, false).await?, partitions)?;
        }
        let update = internal::UpdateTopic { name: name.clone(), set, unset };
        self.propose(internal::metadata_command::Command::UpdateTopic(update)).await?;
        if partitions > 0 {
            self.node.add_partitions(&name, partitions).await?;
        }
        let topic = self.topic(&name, false).await?;
        Ok(self.described(&topic, Wanted::Health).await)
    }

    /// Answers with the id the topic had.
    async fn delete_topic(&self, name: String) -> Result<String, CallError> {
        refuse_internal(&name)?;
        let topic = self.topic(&name, false).await?;
        let delete = internal::DeleteTopic { name, id: topic.id.clone() };
        self.propose(internal::metadata_command::Command::DeleteTopic(delete)).await?;
        Ok(topic.id.clone())
    }

    async fn propose(
        &self,
        command: internal::metadata_command::Command,
    ) -> Result<internal::MetadataOutcome, BrokerError> {
        self.node.propose_metadata(cluster::command(command)).await
    }

    async fn trim_at_leader(
        &self,
        request: &v1::TopicServiceTrimRequest,
    ) -> Result<v1::TopicServiceTrimResponse, CallError> {
        refuse_internal(&request.name)?;
        let leader = match self.trim_here(request).await {
            Err(BrokerError::NotLeader { leader: Some(leader) }) if leader != self.node.id() => {
                leader
            }
            outcome => return Ok(outcome?),
        };
        let address = self.internal_address_of(leader)?;
        self.calls.forward_trim(&address, request.clone()).await.map_err(from_peer)
    }

    /// Trims a partition that this node leads; what other nodes pass on ends here.
    pub(super) async fn trim_here(
        &self,
        request: &v1::TopicServiceTrimRequest,
    ) -> Result<v1::TopicServiceTrimResponse, BrokerError> {
        let position = request.to.as_ref().filter(|position| position.at.is_some());
        let position = position.ok_or_else(|| BrokerError::InvalidArgument {
            field: "to".to_owned(),
            why: "say which record is the first to keep".to_owned(),
        })?;
        self.topic(&request.name, false).await?;
        let (topic, handle) = self.node.route(&request.name, "", request.partition)?;
        if TopicConfig::read(&topic.config).compact {
            return Err(BrokerError::InvalidArgument {
                field: "name".to_owned(),
                why: format!(
                    "'{}' is compacted and keeps the last record of each key; publish tombstones (keys without a value) instead",
                    request.name
                ),
            });
        }
        let to_offset = handle.resolve(position).await?;
        let log_start_offset = wire_offset(handle.trim(to_offset).await?);
        Ok(v1::TopicServiceTrimResponse { log_start_offset })
    }
}
