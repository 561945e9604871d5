"""Short reports that the prompts ask to be summed up: invented, written by hand for this benchmark. Data only."""

REPORTS: tuple[str, ...] = (
    "At 02:14 the feed pump P-102 tripped on high vibration. The operator started the standby pump P-103 within four "
    "minutes, so the level in the steam drum fell only to 41 percent. The workshop found a worn coupling and a loose "
    "foundation bolt. Both were replaced by the morning shift. P-102 ran for six hours on test and stays on standby. "
    "The supplier is asked why the coupling wore out after nine months instead of five years.",
    "A man of 67 years came to the emergency room with pain in the chest that had begun two hours before. The first "
    "electrocardiogram was normal, the second one showed changes in the lower leads. He was given aspirin and "
    "heparin and taken to the catheter laboratory within 50 minutes. One artery was closed and was opened with a "
    "stent. He was free of pain afterwards. He stays in intensive care for one night and should stop smoking.",
    "The branch in Mill Street reported three letters that asked customers to confirm their PIN on a web site. The "
    "site copied our pages but had another address. Two customers had entered their data; both cards were blocked "
    "before money was lost. The site was taken down after eleven hours. All customers of the branch were warned by "
    "letter and in the app. The security team will look for similar addresses every day.",
    "The audit of the pharmacy compared the stock of 1,240 medicines with the records. For 1,212 the numbers agreed. "
    "19 differed by one pack, nine by more. The largest difference was 40 packs of paracetamol that had been booked "
    "on the wrong ward. No controlled drug was missing. The auditors ask for a weekly count of ten random medicines "
    "and for a second person at each booking between wards.",
    "During the storm on Sunday the main line of the plant lost power for 37 minutes. The diesel generator started "
    "after eleven seconds and carried the control room, the lighting and the cooling pumps. The furnace was brought "
    "to a safe stop as planned. One valve did not close by itself and was closed by hand. Production began again at "
    "18:20. About 90 tonnes of glass were lost. The valve's actuator will be replaced this week.",
    "The town's library lent 184,000 books last year, four percent more than the year before. Children's books made "
    "up half of them. The number of visitors grew even more, because the reading room now opens on Saturdays. The "
    "number of films fell by a third. The council has agreed to pay for two more hours on weekdays. The old heating "
    "remains a worry and will have to be replaced within three years.",
    "Nurses on ward 4 noticed that the new infusion pumps gave an alarm for air in the line far more often than the "
    "old ones. In one week 312 alarms were counted, of which 298 were false. The maker found that the sensor was set "
    "too fine. After a change of the settings 21 alarms came in a week, 15 of them real. The ward asks that every "
    "pump is changed before the end of the month, since people stop listening to alarms that are mostly false.",
    "A customer complained that a transfer of 12,500 euro to a builder had not arrived. The money had gone to an "
    "account whose number differed in two digits. The customer had copied it from an e-mail that had been changed on "
    "its way. The bank asked the other bank to return the money; 9,800 euro were still there and came back after "
    "eight days. The police were told. Since then the app shows the name of the account's owner before a transfer.",
    "The new sorting line for parcels went into service on 4 May. It was planned for 9,000 parcels an hour and "
    "reached 7,400 in the first week. Labels that were wet or creased were the main reason for rejects. A second "
    "camera was put above the belt on 18 May, and the line now sorts 8,700 an hour. The rest is lost when the shifts "
    "change. The project has cost 2.1 million, a tenth more than planned.",
    "The water works test the river every six hours. On Tuesday night the turbidity rose from 3 to 48 units within "
    "one hour after heavy rain. The intake was closed for nine hours and the town was supplied from the reservoir, "
    "which fell by 1.2 metres. The filters were washed twice. No sample of drinking water was outside of the limits. "
    "The works want a sensor ten kilometres upstream that would give three hours of warning.",
    "The school kitchen served 640 meals a day in the autumn. A survey of the pupils showed that soup and fish were "
    "liked least and were left on the plate most. The kitchen now cooks fish once a week and offers two soups. Waste "
    "fell from 86 to 51 kilograms a day. The cost of a meal rose by four cents. Parents asked for a menu without "
    "nuts, which begins in January.",
    "A fire in the battery room of the data centre was found by the smoke detector at 23:05. Gas was released and "
    "put it out within a minute. The servers ran on without a break from the second room. Twelve cells of one rack "
    "were destroyed. The cause was a cell that had been marked for exchange in June and had been forgotten. From now "
    "on a marked cell must be taken out within a week, and a list hangs at the door.",
    "The clinic changed the way it calls patients. Before, everybody was told to come at eight and waited 74 minutes "
    "on average. Now each patient gets a time, and a message if it changes. The average wait fell to 22 minutes. "
    "Doctors say that they finish no later than before. Some older patients do not read messages and are called by "
    "telephone. The clinic will go on with it and count again in spring.",
    "An inspection of the crane in hall 2 found a crack of eleven centimetres in the main girder. The crane was "
    "locked at once and the area below it was closed. A welding engineer judged that the crack began at an old "
    "repair of 1998. The girder will be strengthened by two plates, which takes three weeks. Until then heavy parts "
    "are moved by a hired crane. The other four cranes were looked at and are in order.",
    "The bank tested a program that reads letters and proposes an answer. In three months it read 5,200 letters. "
    "Clerks took over 61 percent of the answers unchanged, changed 30 percent and wrote 9 percent anew. Letters "
    "about a death in the family were answered in the wrong tone and are no longer given to the program. A clerk now "
    "answers 46 letters a day instead of 31. The works council agreed to a second test.",
    "The bridge over the canal will be closed from 3 to 21 August. Its bearings are 60 years old and have rusted. "
    "The bridge is lifted by eight presses, one span after another, and new bearings of steel and rubber are put in. "
    "Buses go by the lock, which takes nine minutes more. Walkers can use a small ferry, free of charge, from six in "
    "the morning to ten at night. The work costs 1.4 million.",
)

SUMMARY_REQUESTS: tuple[str, ...] = (
    "Summarize this report in two sentences.",
    "Write a summary of this report for the manager in one paragraph. Say what happened, why, and what comes next.",
)
