// Sequelize through the pooler: its SETs behind each login, models, managed transactions, row locks.
"use strict";
const { DataTypes, Op, QueryTypes, Sequelize, Transaction } = require("sequelize");
const { check, checkRejects, connectionString, run } = require("./checks");

const open = (options = {}) =>
  new Sequelize(connectionString, { dialect: "postgres", logging: false, pool: { max: 6 }, ...options });

function define(sequelize) {
  const Customer = sequelize.define(
    "driver_customer",
    {
      name: { type: DataTypes.TEXT, allowNull: false, unique: true },
      kind: DataTypes.ENUM("free", "paid"),
      extra: DataTypes.JSONB,
      tags: DataTypes.ARRAY(DataTypes.TEXT),
      joined: DataTypes.DATE(6),
    },
    { timestamps: false },
  );
  const Order = sequelize.define("driver_order", { amount: DataTypes.DECIMAL(20, 4) }, { timestamps: false });
  Customer.hasMany(Order);
  Order.belongsTo(Customer);
  return { Customer, Order };
}

async function migrations(sequelize) {
  const queries = sequelize.getQueryInterface();
  await sequelize.sync({ force: true });
  await sequelize.sync({ alter: true });
  await queries.addColumn("driver_orders", "note", { type: DataTypes.TEXT, defaultValue: "none" });
  await queries.addIndex("driver_orders", ["note"], { concurrently: true, name: "driver_orders_note" });
  const columns = Object.keys(await queries.describeTable("driver_orders"));
  check(columns, ["id", "amount", "driverCustomerId", "note"], "the table after the changes");
  await queries.removeColumn("driver_orders", "note");
}

async function models({ Customer, Order }) {
  const joined = new Date(Date.UTC(2024, 1, 29, 23, 59, 59, 999));
  await Customer.bulkCreate(
    Array.from({ length: 300 }, (_, n) => ({ name: `é ${n}`, kind: "free", extra: { n }, tags: ["a", `${n}`], joined })),
  );
  const [one] = await Customer.findAll({ where: { extra: { n: 7 }, tags: { [Op.contains]: ["7"] } } });
  check([one.name, one.joined, one.kind], ["é 7", joined, "free"], "JSON, an array, a time and an enum");
  const customer = await Customer.create(
    { name: "with orders", driver_orders: [{ amount: "1.25" }, { amount: "2.5" }] },
    { include: [Order] },
  );
  const found = await Customer.findOne({ where: { id: customer.id }, include: [Order] });
  check(found.driver_orders.map(({ amount }) => amount).sort(), ["1.2500", "2.5000"], "a relation");
  check(await Order.sum("amount"), 3.75, "a sum");
  const [again, created] = await Customer.findOrCreate({ where: { name: "with orders" } });
  check([again.id, created], [customer.id, false], "findOrCreate");
  await Customer.upsert({ name: "with orders", kind: "paid" });
  check((await again.reload()).kind, "paid", "upsert");
}

async function transactions(sequelize, { Customer }) {
  await sequelize.transaction({ isolationLevel: Transaction.ISOLATION_LEVELS.REPEATABLE_READ }, async (transaction) => {
    await Customer.create({ name: "outer" }, { transaction });
    check(await Customer.count({ where: { name: "outer" } }), 0, "what another connection sees of it");
    await checkRejects(
      sequelize.transaction({ transaction }, (inner) => Customer.create({ name: "outer" }, { transaction: inner })),
      "23505",
      "an error in a savepoint",
    );
    check(await Customer.count({ where: { name: "outer" }, transaction }), 1, "behind the savepoint");
  });
  check(await Customer.count({ where: { name: "outer" } }), 1, "after commit");
  const clients = Array.from({ length: 12 }, (_, n) =>
    sequelize.transaction(async (transaction) => {
      const row = await Customer.findOne({ where: { name: "outer" }, lock: transaction.LOCK.UPDATE, transaction });
      await row.update({ extra: { count: (row.extra?.count ?? 0) + 1, by: n } }, { transaction });
    }),
  );
  await Promise.all(clients);
  check((await Customer.findOne({ where: { name: "outer" } })).extra.count, 12, "rows that are locked");
  const binds = Array.from({ length: 100 }, async (_, n) => {
    const [row] = await sequelize.query("SELECT $1::int AS n", { bind: [n], type: QueryTypes.SELECT });
    check(row, { n }, "a query with bound values");
  });
  await Promise.all(binds);
}

async function ordinary() {
  const sequelize = open();
  const tables = define(sequelize);
  await migrations(sequelize);
  await models(tables);
  await transactions(sequelize, tables);
  await sequelize.drop({});
  await sequelize.close();
}

async function sessionState() {
  const show = async (by, name) => Object.values((await by.query(`SHOW ${name}`, { type: QueryTypes.SELECT }))[0])[0];
  // It sets client_min_messages and the zone behind each login, in one query; the others go with the start.
  const [tokyo, plain] = [open({ timezone: "+09:00", dialectOptions: { statement_timeout: 5000 } }), open()];
  for (let n = 0; n < 5; n += 1) {
    const hours = "SELECT extract(hour FROM TIMESTAMPTZ '2024-01-01 12:00Z')::int AS hour";
    const work = [
      [tokyo, 21, "5s"],
      [plain, 12, "0"],
      [tokyo, 21, "5s"],
      [plain, 12, "0"],
    ].map(async ([by, hour, timeout]) => {
      check((await by.query(hours, { type: QueryTypes.SELECT }))[0], { hour }, "the hour");
      check(await show(by, "client_min_messages"), "warning", "what is set behind the login");
      check(await show(by, "statement_timeout"), timeout, "what is set at the start");
    });
    await Promise.all(work);
  }
  await Promise.all([tokyo.close(), plain.close()]);
}

run({ "": ordinary, "session-state": sessionState });
