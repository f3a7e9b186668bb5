// node-express: one route through Express, as Debian packages it.
const express = require("express");

const app = express();
app.get("/", (_request, response) => response.json({ ok: true }));
app.listen(18080, "127.0.0.1");
