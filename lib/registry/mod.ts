/** Registries, OCI layouts and OCI archives behind one interface, {@linkcode Repository}. */
export * from "./archive.ts";
export * from "./content.ts";
export * from "./digest.ts";
export * from "./layout.ts";
export { REF_NAME_ANNOTATION } from "./layout_reader.ts";
export * from "./manifest.ts";
export * from "./media_types.ts";
export * from "./platform.ts";
export * from "./reference.ts";
export * from "./repository.ts";
