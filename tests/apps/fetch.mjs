// Node's fetch; reads expiresAt as a Date, repeats whatever it likes on a 401 after a new login.
const { NOMBA_BASE_URL, NOMBA_CLIENT_ID, NOMBA_CLIENT_SECRET, NOMBA_ACCOUNT_ID, CALLS } = process.env;
const statuses = [];
let token, until = 0;

async function call(path, options) {
  const reply = await fetch(NOMBA_BASE_URL + path, options);
  statuses.push(reply.status);
  return [reply.status, await reply.json()];
}

async function logIn() {
  const [, { data }] = await call("/v1/auth/token/issue", {
    method: "POST",
    headers: { "Content-Type": "application/json", accountId: NOMBA_ACCOUNT_ID },
    body: JSON.stringify({
      grant_type: "client_credentials",
      client_id: NOMBA_CLIENT_ID,
      client_secret: NOMBA_CLIENT_SECRET,
    }),
  });
  token = data.access_token;
  until = Date.now() + (new Date(data.expiresAt).getTime() - Date.now()) / 2;
}

for (let left = Number(CALLS); left > 0; left -= 1) {
  if (Date.now() >= until) await logIn();
  const headers = { Authorization: `Bearer ${token}`, accountId: NOMBA_ACCOUNT_ID };
  let [status, body] = await call("/v1/accounts/balance", { headers });
  if (status === 401) {
    await logIn();
    headers.Authorization = `Bearer ${token}`;
    [status, body] = await call("/v1/accounts/balance", { headers });
  }
  if (body.code !== "00") throw new Error(JSON.stringify(body));
  await new Promise((done) => setTimeout(done, Number(process.env.PAUSE ?? 0) * 1000));
}
console.log(JSON.stringify(statuses));
