//! ListObjectsV2: one page in key order.

use std::ops::Bound;

use s3s::{
    S3Result,
    dto::{CommonPrefix, ETag, ListObjectsV2Input, ListObjectsV2Output, Object as Listed},
    s3_error,
};

use super::Bucket;

/// What S3 puts on a page at most.
const PAGE: i32 = 1000;

pub fn page(bucket: &Bucket, input: ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
    let limit = input.max_keys.unwrap_or(PAGE).clamp(0, PAGE);
    let room = usize::try_from(limit).unwrap_or(0);
    let prefix = input.prefix.clone().unwrap_or_default();
    let delimiter = input.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty());
    // A token is the last key or group of the page before, told apart by its first letter.
    let (after, group) = match input.continuation_token.as_deref().map(|token| token.split_at_checked(1)) {
        None => (input.start_after.clone().unwrap_or_default(), None),
        Some(Some(("k", key))) => (key.to_owned(), None),
        Some(Some(("g", group))) => (group.to_owned(), Some(group.to_owned())),
        Some(_) => return Err(s3_error!(InvalidArgument, "not a continuation token of this server")),
    };

    let start = if after < prefix { Bound::Included(prefix.as_str()) } else { Bound::Excluded(after.as_str()) };
    let mut contents = Vec::new();
    let mut groups: Vec<String> = group.into_iter().collect();
    let resumed = groups.len();
    let mut last = None;
    let mut truncated = false;
    for (key, object) in bucket.range::<str, _>((start, Bound::Unbounded)) {
        let Some(rest) = key.strip_prefix(&prefix) else { break };
        let group = delimiter.and_then(|delimiter| rest.find(delimiter).map(|at| at + delimiter.len()));
        let group = group.map(|end| &key[..prefix.len() + end]);
        if group.is_some() && group == groups.last().map(String::as_str) {
            continue;
        }
        if contents.len() + groups.len() - resumed == room {
            truncated = true;
            break;
        }
        if let Some(group) = group {
            groups.push(group.to_owned());
            last = Some(format!("g{group}"));
        } else {
            contents.push(Listed {
                key: Some(key.clone()),
                size: Some(object.size()),
                e_tag: Some(ETag::Strong(object.etag.clone())),
                last_modified: Some(object.modified.clone()),
                ..Default::default()
            });
            last = Some(format!("k{key}"));
        }
    }
    let groups: Vec<_> = groups.into_iter().skip(resumed).map(|prefix| CommonPrefix { prefix: Some(prefix) }).collect();
    Ok(ListObjectsV2Output {
        key_count: i32::try_from(contents.len() + groups.len()).ok(),
        contents: Some(contents),
        common_prefixes: Some(groups),
        name: Some(input.bucket),
        prefix: input.prefix,
        delimiter: input.delimiter,
        max_keys: Some(limit),
        continuation_token: input.continuation_token,
        start_after: input.start_after,
        is_truncated: Some(truncated),
        next_continuation_token: last.filter(|_| truncated),
        ..Default::default()
    })
}
