"use strict";
// The page is served at PREFIX/docs and PREFIX/docs/, so the document's address is taken from the page's own.
const prefix = window.location.pathname.replace(/\/+docs\/*$/, "");
window.ui = SwaggerUIBundle({
  url: prefix + "/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  // null: no badge from validator.swagger.io, nothing leaves this machine.
  validatorUrl: null,
});
