// node proxy.mjs PORT ORIGIN LOG TOKEN ACCOUNT: the plugin as its manual shows it, with a log.
import httpProxy from "@fastify/http-proxy";
import Fastify from "fastify";

const [port, origin, file, token, account] = process.argv.slice(2);
const app = Fastify({ logger: { file }, bodyLimit: 64 * 1024 * 1024 });
await app.register(httpProxy, {
  upstream: origin,
  undici: { connections: 1024, pipelining: 1, keepAliveTimeout: 15_000 },
  replyOptions: {
    rewriteRequestHeaders: (request, headers) => ({
      ...headers,
      authorization: `Bearer ${token}`,
      accountid: account,
    }),
  },
});
await app.listen({ host: "127.0.0.1", port: Number(port), backlog: 4096 });
