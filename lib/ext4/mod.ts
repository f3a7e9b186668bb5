/** ext4: a model that builds file systems layer by layer, and a reader. See README.md. */
export type { Attributes } from "./attributes.ts";
export {
  type BlockRun,
  DeviceFullError,
  type MappedRanges,
} from "./block_alloc.ts";
export type { FileBody, FileSectors } from "./body.ts";
export type { Emission, EmittedBlock, ZeroedRun } from "./emit.ts";
export {
  type FileExtent,
  SUPERBLOCK_OFFSET,
  SUPERBLOCK_SIZE,
  type Timestamp,
} from "./format.ts";
export {
  BLOCK_SIZE,
  computeGeometry,
  DEFAULT_INODE_RATIO,
  DEFAULT_VIRTUAL_SIZE,
  type Geometry,
  type SpaceNeed,
  virtualSizeFor,
} from "./geometry.ts";
export { fileSystemIdentity } from "./identity.ts";
export {
  Ext4Model,
  type NodeStat,
  type NodeType,
  type SpecialNode,
  SYMLINK_MAX,
} from "./model.ts";
export {
  Ext4Reader,
  type InodeStat,
  type InodeType,
  type ReaderOptions,
  type StoredInode,
} from "./reader.ts";
export type { DirectoryEntry } from "./reader_dir.ts";
export type { LookupOptions, WalkEntry } from "./reader_tree.ts";
export { type CountedNode, SpaceCounter } from "./space.ts";
export { BODY_EXTENTS_MAX, FILE_SIZE_MAX } from "./node_ops.ts";
export type { Xattr } from "./xattr.ts";
