/** Authentication of the embedded registry: Basic, and a token server. */

/** User names with their passwords. */
export type Users = Record<string, string>;

/** How clients must authenticate. */
export type AuthMode =
  | { kind: "none" }
  | { kind: "basic"; users: Users }
  | {
    kind: "token";
    users?: Users;
    /** OAuth2 refresh tokens that are accepted. */
    refreshTokens?: readonly string[];
    /** Pulls need a token, but no user. */
    anonymousPull?: boolean;
    /** `expires_in` of the answers; absent leaves it out. */
    lifetimeSeconds?: number;
    /** Name of the token in the answer. */
    field?: "token" | "access_token";
  };

type TokenMode = Extract<AuthMode, { kind: "token" }>;

/** An answer in the distribution-spec's error form. */
export function problem(
  status: number,
  code: string,
  headers: Record<string, string> = {},
): Response {
  return Response.json({
    errors: [{ code, message: code.toLowerCase().replaceAll("_", " ") }],
  }, { status, headers });
}

/** Gives out tokens and checks requests. */
export class TokenServer {
  /** `repository:action` that each token allows. */
  readonly #granted = new Map<string, Set<string>>();
  #counter = 0;

  /** All tokens given out so far stop working. */
  revoke(): void {
    this.#granted.clear();
  }

  /** The 401 for a request that may not do this, else nothing. */
  refuse(
    request: Request,
    mode: AuthMode,
    realm: string,
    repository: string | undefined,
    action: "pull" | "push",
  ): Response | undefined {
    const header = request.headers.get("authorization") ?? "";
    if (mode.kind === "none") return undefined;
    if (mode.kind === "basic") {
      if (userOf(header, mode.users) !== undefined) return undefined;
      return problem(401, "UNAUTHORIZED", {
        "www-authenticate": 'Basic realm="test"',
      });
    }
    const granted = this.#granted.get(header.replace(/^Bearer /, ""));
    if (
      granted &&
      (repository === undefined || granted.has(`${repository}:${action}`))
    ) return undefined;
    const actions = action === "push" ? "pull,push" : "pull";
    const scope = repository === undefined
      ? ""
      : `,scope="repository:${repository}:${actions}"`;
    return problem(401, "UNAUTHORIZED", {
      "www-authenticate":
        `Bearer realm="${realm}",service="test registry"${scope}`,
    });
  }

  /** The token server's endpoint: GET with Basic, POST with a refresh token. */
  async answer(request: Request, mode: AuthMode): Promise<Response> {
    if (mode.kind !== "token") return problem(404, "UNSUPPORTED");
    const asked = request.method === "POST"
      ? await readForm(request, mode)
      : readQuery(request, mode);
    if (!asked) return problem(401, "UNAUTHORIZED");
    const granted = new Set<string>();
    for (const scope of asked.scopes) {
      const [, name, actions = ""] = /^repository:(.+):([a-z,]+)$/
        .exec(scope) ?? [];
      for (const action of actions.split(",")) {
        const isFree = mode.anonymousPull && action === "pull";
        if (asked.hasUser || isFree) granted.add(`${name}:${action}`);
      }
    }
    const token = `token-${++this.#counter}`;
    this.#granted.set(token, granted);
    return Response.json({
      [mode.field ?? "token"]: token,
      ...(mode.lifetimeSeconds === undefined
        ? {}
        : { expires_in: mode.lifetimeSeconds }),
    });
  }
}

interface Asked {
  hasUser: boolean;
  scopes: string[];
}

async function readForm(
  request: Request,
  mode: TokenMode,
): Promise<Asked | undefined> {
  const form = new URLSearchParams(await request.text());
  const isKnown = form.get("grant_type") === "refresh_token" &&
    mode.refreshTokens?.includes(form.get("refresh_token") ?? "");
  if (!isKnown) return undefined;
  return { hasUser: true, scopes: (form.get("scope") ?? "").split(" ") };
}

function readQuery(request: Request, mode: TokenMode): Asked | undefined {
  const header = request.headers.get("authorization");
  const hasUser = header !== null &&
    userOf(header, mode.users ?? {}) !== undefined;
  // Wrong credentials are refused even where none would do.
  if (!hasUser && (header !== null || !mode.anonymousPull)) return undefined;
  const scopes = new URL(request.url).searchParams.getAll("scope");
  return { hasUser, scopes };
}

function userOf(header: string, users: Users): string | undefined {
  const encoded = /^Basic (\S+)$/i.exec(header)?.[1];
  if (!encoded) return undefined;
  const [user = "", ...password] = atob(encoded).split(":");
  const expected = Object.hasOwn(users, user) ? users[user] : undefined;
  return expected !== undefined && expected === password.join(":")
    ? user
    : undefined;
}
