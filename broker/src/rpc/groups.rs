//! GroupService: declared, not available yet. Every call says so with a reason that clients understand.

use highwater_proto::v1;
use highwater_proto::v1::group_service_server::GroupService;
use tonic::{Request, Response, Status};

use super::door::Door;
use super::status::CallError;
use crate::error::BrokerError;

/// GroupService of one listener.
pub(super) struct Groups {
    pub(super) door: Door,
}

impl Groups {
    fn later<T>(&self) -> Result<Response<T>, Status> {
        let error = BrokerError::Unimplemented { what: "the administration of consumer groups" };
        Err(self.door.status(&CallError::Here(error)))
    }
}

#[tonic::async_trait]
impl GroupService for Groups {
    async fn list(
        &self,
        _: Request<v1::GroupServiceListRequest>,
    ) -> Result<Response<v1::GroupServiceListResponse>, Status> {
        self.later()
    }

    async fn describe(
        &self,
        _: Request<v1::GroupServiceDescribeRequest>,
    ) -> Result<Response<v1::GroupServiceDescribeResponse>, Status> {
        self.later()
    }

    async fn delete(
        &self,
        _: Request<v1::GroupServiceDeleteRequest>,
    ) -> Result<Response<v1::GroupServiceDeleteResponse>, Status> {
        self.later()
    }

    async fn commit_offsets(
        &self,
        _: Request<v1::CommitOffsetsRequest>,
    ) -> Result<Response<v1::CommitOffsetsResponse>, Status> {
        self.later()
    }

    async fn fetch_offsets(
        &self,
        _: Request<v1::FetchOffsetsRequest>,
    ) -> Result<Response<v1::FetchOffsetsResponse>, Status> {
        self.later()
    }

    async fn reset_offsets(
        &self,
        _: Request<v1::ResetOffsetsRequest>,
    ) -> Result<Response<v1::ResetOffsetsResponse>, Status> {
        self.later()
    }
}
