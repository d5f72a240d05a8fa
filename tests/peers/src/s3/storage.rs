//! The buckets: one lock around all of them, so that a condition and its write are one step.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use s3s::{
    Body, S3, S3Request, S3Response, S3Result,
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
        CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput,
        DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag, ETagCondition,
        GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput,
        ListObjectsV2Input, ListObjectsV2Output, Metadata, PutObjectInput, PutObjectOutput, StreamingBlob, Timestamp,
        UploadPartInput, UploadPartOutput,
    },
    s3_error,
};

use super::faults::{Conditional, Faults};

mod list;

/// Implements the operations on what is in memory. Clones share it.
#[derive(Debug, Clone)]
pub struct Storage {
    state: Arc<Mutex<State>>,
    faults: Faults,
}

#[derive(Debug, Default)]
struct State {
    buckets: BTreeMap<String, Bucket>,
    uploads: BTreeMap<String, Upload>,
    /// Numbers objects and uploads; an ETag is opaque to clients.
    serial: u64,
}

type Bucket = BTreeMap<String, Object>;

#[derive(Debug, Clone)]
struct Object {
    data: Bytes,
    etag: String,
    modified: Timestamp,
    attributes: Attributes,
}

/// What a client may say about an object and gets back with it.
#[derive(Debug, Clone, Default)]
struct Attributes {
    metadata: Option<Metadata>,
    content_type: Option<String>,
    content_encoding: Option<String>,
    cache_control: Option<String>,
    content_disposition: Option<String>,
    content_language: Option<String>,
}

#[derive(Debug)]
struct Upload {
    bucket: String,
    key: String,
    attributes: Attributes,
    parts: BTreeMap<i32, (String, Bytes)>,
}

/// The condition of a write.
struct Condition {
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
}

impl Storage {
    pub fn new(faults: Faults) -> Self {
        Self { state: Arc::default(), faults }
    }

    pub fn create_bucket(&self, name: &str) {
        self.state().buckets.entry(name.to_owned()).or_default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left of the condition under the switch for conditional writes.
    fn honoured(&self, condition: Condition) -> S3Result<Condition> {
        let asked = condition.if_match.is_some() || condition.if_none_match.is_some();
        match self.faults.treats_conditions() {
            Conditional::Refused if asked => Err(s3_error!(NotImplemented, "conditional writes are not supported")),
            Conditional::Ignored => Ok(Condition { if_match: None, if_none_match: None }),
            Conditional::Honest | Conditional::Refused => Ok(condition),
        }
    }
}

impl State {
    fn bucket(&self, name: &str) -> S3Result<&Bucket> {
        self.buckets.get(name).ok_or_else(|| s3_error!(NoSuchBucket))
    }

    fn object(&self, bucket: &str, key: &str) -> S3Result<&Object> {
        self.bucket(bucket)?.get(key).ok_or_else(|| s3_error!(NoSuchKey))
    }

    fn next_serial(&mut self) -> String {
        self.serial += 1;
        format!("{:032x}", self.serial)
    }

    /// Checks the condition and writes; returns the new ETag.
    fn put(
        &mut self,
        bucket: &str,
        key: String,
        data: Bytes,
        attributes: Attributes,
        condition: &Condition,
    ) -> S3Result<String> {
        let etag = self.next_serial();
        let bucket = self.buckets.get_mut(bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
        condition.check(bucket.get(&key))?;
        let object = Object { data, etag: etag.clone(), modified: now(), attributes };
        bucket.insert(key, object);
        Ok(etag)
    }

    fn upload(&mut self, id: &str, bucket: &str, key: &str) -> S3Result<&mut Upload> {
        let upload = self.uploads.get_mut(id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        if upload.bucket == bucket && upload.key == key { Ok(upload) } else { Err(s3_error!(NoSuchUpload)) }
    }
}

impl Condition {
    fn check(&self, existing: Option<&Object>) -> S3Result<()> {
        match &self.if_none_match {
            Some(ETagCondition::Any) if existing.is_some() => return Err(s3_error!(PreconditionFailed)),
            Some(ETagCondition::ETag(_)) => return Err(s3_error!(NotImplemented, "If-None-Match takes * only")),
            Some(ETagCondition::Any) | None => {}
        }
        match (&self.if_match, existing) {
            (None, _) | (Some(ETagCondition::Any), Some(_)) => Ok(()),
            (Some(_), None) => Err(s3_error!(NoSuchKey)),
            (Some(ETagCondition::ETag(etag)), Some(object)) if etag.value() == object.etag => Ok(()),
            (Some(ETagCondition::ETag(_)), Some(_)) => Err(s3_error!(PreconditionFailed)),
        }
    }
}

impl Object {
    /// Checks the conditions of a read.
    fn check(&self, if_match: Option<&ETagCondition>, if_none_match: Option<&ETagCondition>) -> S3Result<()> {
        let matches = |condition: &ETagCondition| match condition {
            ETagCondition::Any => true,
            ETagCondition::ETag(etag) => etag.value() == self.etag,
        };
        if if_match.is_some_and(|condition| !matches(condition)) {
            return Err(s3_error!(PreconditionFailed));
        }
        if if_none_match.is_some_and(matches) {
            return Err(s3_error!(NotModified));
        }
        Ok(())
    }

    fn size(&self) -> i64 {
        i64::try_from(self.data.len()).unwrap_or(i64::MAX)
    }
}

#[expect(clippy::disallowed_methods, reason = "a peer lives in real time")]
fn now() -> Timestamp {
    SystemTime::now().into()
}

async fn collect(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(body) = body else { return Ok(Bytes::new()) };
    let collected = body.try_fold(BytesMut::new(), |mut all, part| async move {
        all.extend_from_slice(&part);
        Ok(all)
    });
    Ok(collected.await.map_err(|error| s3_error!(IncompleteBody, "{error}"))?.freeze())
}

#[async_trait::async_trait]
impl S3 for Storage {
    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.state().bucket(&request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let condition = self.honoured(Condition { if_match: input.if_match, if_none_match: input.if_none_match })?;
        let attributes = Attributes {
            metadata: input.metadata,
            content_type: input.content_type,
            content_encoding: input.content_encoding,
            cache_control: input.cache_control,
            content_disposition: input.content_disposition,
            content_language: input.content_language,
        };
        let data = collect(input.body).await?;
        let etag = self.state().put(&input.bucket, input.key, data, attributes, &condition)?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(ETag::Strong(etag)), ..Default::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let object = self.state().object(&input.bucket, &input.key)?.clone();
        object.check(input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let size = object.data.len();
        let (data, content_range) = match input.range {
            None => (object.data, None),
            Some(range) => {
                let range = range.check(size as u64).map_err(|_| s3_error!(InvalidRange))?;
                let said = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                let bound = |at: u64| usize::try_from(at).map_err(|_| s3_error!(InvalidRange));
                (object.data.slice(bound(range.start)?..bound(range.end)?), Some(said))
            }
        };
        Ok(S3Response::new(GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: i64::try_from(data.len()).ok(),
            content_range,
            body: Some(StreamingBlob::from(Body::from(data))),
            e_tag: Some(ETag::Strong(object.etag)),
            last_modified: Some(object.modified),
            metadata: object.attributes.metadata,
            content_type: object.attributes.content_type,
            content_encoding: object.attributes.content_encoding,
            cache_control: object.attributes.cache_control,
            content_disposition: object.attributes.content_disposition,
            content_language: object.attributes.content_language,
            ..Default::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        let object = self.state().object(&input.bucket, &input.key)?.clone();
        object.check(input.if_match.as_ref(), input.if_none_match.as_ref())?;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(object.size()),
            e_tag: Some(ETag::Strong(object.etag)),
            last_modified: Some(object.modified),
            metadata: object.attributes.metadata,
            content_type: object.attributes.content_type,
            content_encoding: object.attributes.content_encoding,
            cache_control: object.attributes.cache_control,
            content_disposition: object.attributes.content_disposition,
            content_language: object.attributes.content_language,
            ..Default::default()
        }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let mut state = self.state();
        let bucket = state.buckets.get_mut(&request.input.bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
        bucket.remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let input = request.input;
        let mut state = self.state();
        let bucket = state.buckets.get_mut(&input.bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
        let deleted = input.delete.objects.into_iter().map(|object| {
            bucket.remove(&object.key);
            DeletedObject { key: Some(object.key), ..Default::default() }
        });
        let deleted = Some(deleted.collect());
        Ok(S3Response::new(DeleteObjectsOutput { deleted, ..Default::default() }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let state = self.state();
        let bucket = state.bucket(&request.input.bucket)?;
        Ok(S3Response::new(list::page(bucket, request.input)?))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        let attributes = Attributes {
            metadata: input.metadata,
            content_type: input.content_type,
            content_encoding: input.content_encoding,
            cache_control: input.cache_control,
            content_disposition: input.content_disposition,
            content_language: input.content_language,
        };
        let mut state = self.state();
        state.bucket(&input.bucket)?;
        let id = state.next_serial();
        let (bucket, key) = (input.bucket, input.key);
        let upload = Upload { bucket: bucket.clone(), key: key.clone(), attributes, parts: BTreeMap::new() };
        state.uploads.insert(id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        let data = collect(input.body).await?;
        let mut state = self.state();
        let etag = state.next_serial();
        let upload = state.upload(&input.upload_id, &input.bucket, &input.key)?;
        upload.parts.insert(input.part_number, (etag.clone(), data));
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(ETag::Strong(etag)), ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        let condition = self.honoured(Condition { if_match: input.if_match, if_none_match: input.if_none_match })?;
        let wanted = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let mut state = self.state();
        let upload = state.upload(&input.upload_id, &input.bucket, &input.key)?;
        let mut data = BytesMut::new();
        let mut before = 0;
        for part in wanted {
            let number = part.part_number.unwrap_or_default();
            if number <= before {
                return Err(s3_error!(InvalidPartOrder));
            }
            before = number;
            let held = upload
                .parts
                .get(&number)
                .filter(|(etag, _)| part.e_tag.as_ref().is_none_or(|said| said.value() == etag));
            let (_, bytes) = held.ok_or_else(|| s3_error!(InvalidPart))?;
            data.extend_from_slice(bytes);
        }
        let attributes = upload.attributes.clone();
        let etag = state.put(&input.bucket, input.key.clone(), data.freeze(), attributes, &condition)?;
        state.uploads.remove(&input.upload_id);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(etag)),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = request.input;
        let mut state = self.state();
        state.upload(&input.upload_id, &input.bucket, &input.key)?;
        state.uploads.remove(&input.upload_id);
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}
