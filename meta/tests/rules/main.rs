//! The rules of the namespace, one test each. Every operation here also checks that a refusal left
//! no trace and that the state stayed sound (see `common`).

mod access;
mod acl;
#[path = "../common/mod.rs"]
mod common;
mod files;
mod names;
mod unnamed;

const ROOT: u32 = 0;
const ALICE: u32 = 1000;
const BOB: u32 = 1001;

fn member(uid: u32, groups: &[u32]) -> meta::Caller {
    meta::Caller { uid, gid: uid, groups: groups.to_vec() }
}
