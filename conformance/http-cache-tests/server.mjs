// The server of http-cache-tests, which answers the token calls too: node server.mjs PORT
import http from 'node:http'
import { randomBytes } from 'node:crypto'
import config from 'http-cache-tests/server/handle-config.mjs'
import state from 'http-cache-tests/server/handle-state.mjs'
import test from 'http-cache-tests/server/handle-test.mjs'

const handlers = { config, state, test }
const life = 3600 // seconds of a token; longer than the suite runs

function token (response) {
  const data = {
    access_token: randomBytes(200).toString('hex'),
    refresh_token: randomBytes(16).toString('hex'),
    expiresAt: new Date(Date.now() + life * 1000).toISOString()
  }
  response.setHeader('Content-Type', 'application/json')
  response.end(JSON.stringify({ code: '00', description: 'Success', data }))
}

http.createServer((request, response) => {
  const [first, ...rest] = new URL(request.url, 'http://localhost').pathname.split('/').slice(1)
  if (first in handlers) handlers[first](rest, request, response)
  else if (request.url.startsWith('/v1/auth/token/')) token(response)
  else response.writeHead(404).end()
}).listen(Number(process.argv[2]), '127.0.0.1')
