/** ext4: the model that builds file systems, and the parts that others need of the format. */
export type { Attributes } from "./attributes.ts";
export {
  type BlockRun,
  DeviceFullError,
  type MappedRanges,
} from "./block_alloc.ts";
export type { Emission, EmittedBlock, ZeroedRun } from "./emit.ts";
export {
  BLOCK_SIZE,
  computeGeometry,
  DEFAULT_INODE_RATIO,
  DEFAULT_VIRTUAL_SIZE,
  type Geometry,
  type SpaceNeed,
  virtualSizeFor,
} from "./geometry.ts";
export {
  BODY_EXTENTS_MAX,
  Ext4Model,
  FILE_SIZE_MAX,
  type FileBody,
  type FileSectors,
  type NodeStat,
  type NodeType,
  type SpecialNode,
  SYMLINK_MAX,
} from "./model.ts";
