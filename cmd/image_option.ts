/** How commands that read an image open it: a temporary environment of their own. */

import {
  type ImageEnvironment,
  type OpenedImage,
  openEnvironment,
  openImage,
} from "../lib/image/mod.ts";
import type { Context } from "./context.ts";

/** An opened image with everything behind it. */
export interface ImageSession extends AsyncDisposable {
  image: OpenedImage;
  environment: ImageEnvironment;
}

/**
 * Opens an image for one command. Caches are in memory: a running `serve` owns
 * the ones on disk.
 */
export async function openSession(
  context: Context,
  text: string,
  options: Record<string, unknown>,
): Promise<ImageSession> {
  const environment = await openEnvironment({
    log: context.log,
    progress: context.progress,
    signal: context.signal,
    registry: context.registry,
  });
  try {
    const image = await openImage(environment, text, {
      platform: options.platform as string | undefined,
    });
    return {
      image,
      environment,
      async [Symbol.asyncDispose]() {
        await image[Symbol.asyncDispose]();
        await environment[Symbol.asyncDispose]();
      },
    };
  } catch (error) {
    await environment[Symbol.asyncDispose]();
    throw error;
  }
}
